"""Progress as a bar, as plain lines and as JSON lines."""

import io
import json
import re
import time
from collections.abc import Iterator

import msgspec
import pytest
from rich.console import Console

from jobs.records import JobSpec, JobState, JobStatus
from producer.pace import Pace
from producer.watch import follow_as_json, follow_plainly, follow_with_bar, follower

SPEC = JobSpec(
    id="job-1",
    model="m",
    created_at=0,
    source="s",
    lines=10,
    rejected=0,
    shards=2,
    input_bytes=1,
    input_sha256="",
)


def status(state: JobState, done: int = 0, failed: int = 0, problem: str | None = None) -> JobStatus:
    return JobStatus(
        spec=SPEC,
        state=state,
        succeeded=done - failed,
        failed=failed,
        checkpointed=0,
        checkpointed_failed=0,
        committed_shards=0,
        prompt_tokens=done * 3,
        completion_tokens=done * 5,
        device_seconds=0.0,
        wasted_device_seconds=0.0,
        outcome="",
        started_at=None if state is JobState.QUEUED else 100.0,
        finished_at=110.0 if state.final else None,
        problem=problem,
    )


def run() -> Iterator[JobStatus]:
    yield status(JobState.QUEUED)
    yield status(JobState.QUEUED)
    yield status(JobState.IN_PROGRESS, 4, 1)
    yield status(JobState.IN_PROGRESS, 4, 1, "[engine] restarts")
    yield status(JobState.COMPLETED, 10, 1)


def console(*, terminal: bool = False, width: int = 120) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=width, force_terminal=terminal), out


class Clock:
    """A clock that stands still but for what a test says."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def through(self, *steps: tuple[float, JobStatus]) -> Iterator[JobStatus]:
        """Each status at its time."""
        for self.now, each in steps:
            yield each


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("producer.pace.time", clock)
    return clock


def test_the_way_suits_the_console() -> None:
    assert follower(console(terminal=True)[0], as_json_lines=False) is follow_with_bar
    assert follower(console()[0], as_json_lines=False) is follow_plainly
    assert follower(console(terminal=True)[0], as_json_lines=True) is follow_as_json


def test_plain_lines_are_news_alone() -> None:
    to, out = console()
    assert follow_plainly(run(), to) == status(JobState.COMPLETED, 10, 1)
    lines = out.getvalue().splitlines()
    assert [line.split(", ")[:3] for line in lines[:3]] == [
        ["job-1 queued: 0/10 lines", "0 failed", "0 tokens"],
        ["job-1 in_progress: 4/10 lines", "1 failed", "20 tokens"],
        ["job-1 in_progress: 4/10 lines", "1 failed", "20 tokens"],
    ]
    assert lines[2].endswith("[engine] restarts")
    assert lines[3] == (
        "job-1 completed: 9 of 10 lines succeeded, 1 failed; 50 tokens in 10.0 s (5 tokens/s)"
    )
    assert len(lines) == 4


def test_json_lines_are_changes_alone() -> None:
    to, out = console()
    follow_as_json(run(), to)
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [(line["state"], line["done"], line["failed"]) for line in lines] == [
        ("queued", 0, 0),
        ("in_progress", 4, 1),
        ("in_progress", 4, 1),
        ("completed", 10, 1),
    ]


def test_json_lines_have_rates_where_they_are_known(clock: Clock) -> None:
    to, out = console()
    follow_as_json(
        clock.through((0, status(JobState.IN_PROGRESS, 2)), (4, status(JobState.IN_PROGRESS, 4))), to
    )
    first, second = (json.loads(line) for line in out.getvalue().splitlines())
    assert (first["tokens_per_second"], first["seconds_left"]) == (None, None)
    assert (second["tokens_per_second"], second["seconds_left"]) == (2.5, 12)
    assert (second["completion_tokens"], second["failed_so_far"], second["deadline"]) == (20, 0, None)


def test_a_rate_alone_is_no_news(clock: Clock) -> None:
    to, out = console()
    same = status(JobState.IN_PROGRESS, 2)
    follow_as_json(clock.through((0, same), (5, same), (10, same)), to)
    assert len(out.getvalue().splitlines()) == 1


@pytest.mark.parametrize("width", [80, 120])
def test_the_bar_shows_everything_and_ends_with_the_summary(width: int, clock: Clock) -> None:
    to, out = console(terminal=True, width=width)
    spec = msgspec.structs.replace(SPEC, lines=1_000_000, deadline=time.time() + 5000)
    states = [
        msgspec.structs.replace(
            status(JobState.IN_PROGRESS, done, problem=problem),
            spec=spec,
            failed=123,
            checkpointed=600,
            checkpointed_failed=456,
            completion_tokens=tokens,
        )
        for done, tokens, problem in (
            (1000, 1_000_000, None),
            (512_000, 123_456_789, "[Redis] is\x1b[2J away"),
        )
    ]
    end = msgspec.structs.replace(status(JobState.COMPLETED, 10, 1), spec=spec)
    follow_with_bar(clock.through((0, states[0]), (10, states[1]), (11, end)), to)
    shown = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).strip())
    assert any(line.endswith("512723/1000000 lines, 579 failed") for line in shown)
    assert any("123456789 tokens, 12245679 tokens/s, 0:10 left, deadline in 1:23:" in line for line in shown)
    assert any("[Redis] is�[2J away" in line for line in shown)
    assert max(map(len, shown[:-1])) <= width
    assert "9 of 1000000 lines succeeded" in shown[-1]


def test_a_rate_is_that_of_the_last_minute(clock: Clock) -> None:
    pace = Pace()
    statuses = [
        (0.0, status(JobState.QUEUED)),
        (1.0, status(JobState.IN_PROGRESS, 0)),
        (2.0, status(JobState.IN_PROGRESS, 2)),
        (32.0, status(JobState.IN_PROGRESS, 3)),
        (100.0, status(JobState.IN_PROGRESS, 4)),
        (160.0, status(JobState.IN_PROGRESS, 4)),
        (170.0, status(JobState.COMPLETED, 10)),
    ]
    seen = [pace.seen(each) for each in clock.through(*statuses)]
    assert seen == [
        (None, None),
        (None, None),
        (10.0, 4.0),
        (15 / 31, 7 * 31 / 3),
        (5 / 68, 6 * 68 / 1),
        (0.0, 6 * 159 / 4),  # no line within the minute: by all that was seen
        (30 / 70, None),
    ]


def test_a_deadline_that_has_passed_is_told() -> None:
    to, out = console()
    late = msgspec.structs.replace(
        status(JobState.FINALIZING, 4), spec=msgspec.structs.replace(SPEC, deadline=1.0)
    )
    follow_plainly(iter([late, status(JobState.EXPIRED, 4)]), to)
    first, last = out.getvalue().splitlines()
    assert first.endswith("20 tokens, deadline has passed")
    assert last.startswith("job-1 expired: ")
