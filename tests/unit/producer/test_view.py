"""Tables and texts for people."""

import io

import msgspec
import pytest
from rich.console import Console, RenderableType

from jobs.dialogue import error_line
from jobs.records import JobSpec, JobState, JobStatus, Reject
from producer.view import (
    jobs_table,
    results_table,
    status_fields,
    status_table,
    submission_fields,
    unusable_lines,
)
from tests.output_lines import answered

SPEC = JobSpec(
    id="job-20260131-235959-1a2b3c",
    model="m",
    created_at=0,
    source="a source with a name that is far too long for a terminal " * 3,
    lines=10,
    rejected=2,
    shards=2,
    input_bytes=1,
    input_sha256="",
)
STATUS = JobStatus(
    spec=SPEC,
    state=JobState.IN_PROGRESS,
    succeeded=3,
    failed=2,
    checkpointed=1,
    checkpointed_failed=0,
    committed_shards=1,
    prompt_tokens=30,
    completion_tokens=20,
    device_seconds=0.0,
    wasted_device_seconds=0.0,
    outcome="",
    started_at=60,
    finished_at=None,
    problem="Redis [was] away",
)


def shown(table: RenderableType, width: int = 80) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(table)
    return out.getvalue()


@pytest.mark.parametrize("deadline", [None, 3600])
def test_a_narrow_list_has_what_identifies_and_counts(deadline: float | None) -> None:
    spec = msgspec.structs.replace(SPEC, deadline=deadline)
    text = shown(jobs_table([msgspec.structs.replace(STATUS, spec=spec)]), width=80)
    for part in (SPEC.id, " in_progress ", " 10 ", " 6 ", " 2 "):
        assert part in text
    assert ("01-01 01:00" in text) == (deadline is not None)


def test_a_status_tells_counts_and_what_holds_it_up() -> None:
    text = shown(status_table(STATUS), width=200)
    for part in (
        "6 of 10 done",
        "2 (2 unusable)",
        "1 of 2 committed",
        "1970-01-01 00:01:00 UTC",
        "Redis [was] away",
    ):
        assert part in text


def test_failed_lines_count_before_their_shard_is_committed() -> None:
    status = msgspec.structs.replace(STATUS, checkpointed=4, checkpointed_failed=3)
    assert "5 (2 unusable)" in shown(status_table(status), width=200)
    fields = status_fields(status)
    assert (fields["failed"], fields["checkpointed_failed"], fields["failed_so_far"]) == (2, 3, 5)


def test_deadlines_and_links_are_shown_where_there_are_any() -> None:
    plain = shown(status_table(STATUS), width=200) + shown(jobs_table([STATUS]), width=200)
    for word in ("deadline", "retry of", "reuses"):
        assert word not in plain
    spec = msgspec.structs.replace(SPEC, deadline=3600, retry_of="job-a", reuse_of="job-b")
    linked = msgspec.structs.replace(STATUS, spec=spec)
    text = shown(status_table(linked), width=200)
    for part in ("1970-01-01 01:00:00 UTC", "job-a", "job-b"):
        assert part in text
    table = shown(jobs_table([STATUS, linked]), width=200)
    assert table.count("01-01 01:00") == 1
    fields = status_fields(linked)
    assert (fields["deadline"], fields["retry_of"], fields["reuse_of"]) == (3600, "job-a", "job-b")
    assert submission_fields(spec).items() >= {"deadline": 3600, "retry_of": "job-a"}.items()


def test_results_are_trimmed_and_can_not_steer_the_terminal() -> None:
    said = "one\n  two \x1b[31m[bold]" + "x" * 500
    answer = answered("job-1", 7, said, "c\x1b[2J", tokens=(1, 42))
    failure = error_line("job-1", 8, None, "invalid_json", "bad \x1b[0m")
    text = shown(results_table([answer, failure]), width=250)
    assert "\x1b" not in text
    assert "one two �[31m[bold]xxx" in text
    assert "x…" in text
    assert "42" in text
    assert "invalid_json: bad �[0m" in text


def test_unusable_lines_end_with_how_many_more_there_are() -> None:
    rejects = [Reject(line=line, custom_id=None, code="invalid_json", message="no") for line in (2, 5)]
    assert unusable_lines(rejects, 2) == "  line 2: invalid_json: no\n  line 5: invalid_json: no"
    assert unusable_lines(rejects, 7).splitlines()[-1] == "  … and 5 more"
