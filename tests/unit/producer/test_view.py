"""Tables and texts for people."""

import io

from rich.console import Console, RenderableType

from jobs.dialogue import Dialogue, Sampling, error_line, success_line
from jobs.records import JobSpec, JobState, JobStatus, Reject
from producer.view import jobs_table, results_table, status_table, unusable_lines

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
    committed_shards=1,
    prompt_tokens=30,
    completion_tokens=20,
    device_seconds=0.0,
    outcome="",
    started_at=60,
    finished_at=None,
    problem="Redis [was] away",
)


def shown(table: RenderableType, width: int = 80) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(table)
    return out.getvalue()


def test_a_jobs_id_is_whole_in_a_narrow_list() -> None:
    assert SPEC.id in shown(jobs_table([STATUS]), width=80)


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


def test_results_are_trimmed_and_can_not_steer_the_terminal() -> None:
    answer = success_line(
        "job-1",
        Dialogue(7, "c\x1b[2J", (), Sampling()),
        model="m",
        text="one\n  two \x1b[31m[bold]" + "x" * 500,
        finish_reason="stop",
        prompt_tokens=1,
        completion_tokens=42,
        created=0,
    )
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
