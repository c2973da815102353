"""Progress as a bar, as plain lines and as JSON lines."""

import io
import json
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from rich.console import Console

from jobs.records import JobSpec, JobState, JobStatus
from producer.watch import Pace, follow_as_json, follow_plainly, follow_with_bar, follower

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
        committed_shards=0,
        prompt_tokens=done * 3,
        completion_tokens=done * 5,
        device_seconds=0.0,
        outcome="",
        started_at=100.0,
        finished_at=110.0 if state.final else None,
        problem=problem,
    )


def run() -> Iterator[JobStatus]:
    yield status(JobState.QUEUED)
    yield status(JobState.QUEUED)
    yield status(JobState.IN_PROGRESS, 4, 1)
    yield status(JobState.IN_PROGRESS, 4, 1, "[engine] restarts")
    yield status(JobState.COMPLETED, 10, 1)


def console(*, terminal: bool = False) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=120, force_terminal=terminal), out


def test_the_way_suits_the_console() -> None:
    assert follower(console(terminal=True)[0], as_json_lines=False) is follow_with_bar
    assert follower(console()[0], as_json_lines=False) is follow_plainly
    assert follower(console(terminal=True)[0], as_json_lines=True) is follow_as_json


def test_plain_lines_are_news_alone() -> None:
    to, out = console()
    assert follow_plainly(run(), to) == status(JobState.COMPLETED, 10, 1)
    lines = out.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines[:3]] == [
        "job-1 queued: 0/10 lines",
        "job-1 in_progress: 4/10 lines",
        "job-1 in_progress: 4/10 lines",
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


def test_the_bar_shows_counts_and_ends_with_the_summary() -> None:
    to, out = console(terminal=True)
    follow_with_bar(run(), to)
    text = out.getvalue()
    assert "10/10 lines" in text
    assert "1 failed" in text
    assert "9 of 10 lines succeeded" in text.splitlines()[-1]


def test_pace_counts_from_the_first_look(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 2.0, 100.0])
    monkeypatch.setattr("producer.watch.time", SimpleNamespace(monotonic=lambda: next(times)))
    pace = Pace()
    assert pace.text(status(JobState.IN_PROGRESS, 2)) == ""
    assert pace.text(status(JobState.IN_PROGRESS, 4)) == "5 tokens/s, 0:06 left"
    assert pace.text(status(JobState.COMPLETED, 10)) == "0 tokens/s"
