"""Shows a job's progress while it runs: a bar at a terminal, plain lines elsewhere, or JSON lines.

Owns the look of progress. Where the statuses come from, and what a job's end means, is the caller's affair.
"""

import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from jobs.records import JobStatus
from producer.view import as_json, status_fields, summary

#: Seconds between two plain lines while only counts change.
_PLAIN_SECONDS = 5.0

Follower = Callable[[Iterator[JobStatus], Console], JobStatus]


def follower(console: Console, *, as_json_lines: bool) -> Follower:
    """The way to show progress that suits the console."""
    if as_json_lines:
        return follow_as_json
    return follow_with_bar if console.is_terminal else follow_plainly


def follow_with_bar(statuses: Iterator[JobStatus], console: Console) -> JobStatus:
    """A progress bar; returns the last status."""
    columns = (
        SpinnerColumn(),  # lines may take a while, and end together
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[lines]}"),
        TextColumn("{task.fields[failed]} failed"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[pace]}"),
        TextColumn("{task.fields[problem]}", style="yellow", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        pace = Pace()
        task = progress.add_task("", total=None, lines="", failed=0, pace="", problem="")
        for status in statuses:
            progress.update(
                task,
                description=status.state,
                total=status.spec.lines,
                completed=status.done_lines,
                lines=f"{status.done_lines}/{status.spec.lines} lines",
                failed=status.failed,
                pace=pace.text(status),
                problem=status.problem or "",
            )
    _print(console, summary(status))
    return status


def follow_plainly(statuses: Iterator[JobStatus], console: Console) -> JobStatus:
    """A line when the state changes, and now and then when only counts do; returns the last status."""
    pace = Pace()
    said: tuple[object, ...] = ()
    said_at = 0.0
    for status in statuses:
        news = (status.state, status.problem)
        counts = (status.done_lines, status.failed)
        due = time.monotonic() - said_at >= _PLAIN_SECONDS
        if not status.state.final and (news != said[:2] or (due and counts != said[2:])):
            text = f"{status.spec.id} {status.state}: {status.done_lines}/{status.spec.lines} lines"
            details = (f"{status.failed} failed", pace.text(status), status.problem or "")
            _print(console, ", ".join(filter(None, (text, *details))))
            said, said_at = (*news, *counts), time.monotonic()
    _print(console, summary(status))
    return status


def follow_as_json(statuses: Iterator[JobStatus], console: Console) -> JobStatus:
    """One JSON line for every change; returns the last status."""
    last = ""
    for status in statuses:
        line = as_json(status_fields(status))
        if line != last:
            _print(console, line)
            last = line
    return status


class Pace:
    """How fast a job goes since it was first seen at work."""

    def __init__(self) -> None:
        self._first: tuple[float, int, int] | None = None

    def text(self, status: JobStatus) -> str:
        """Generated tokens per second, and the time left, as far as they are known."""
        now, lines, tokens = time.monotonic(), status.done_lines, status.completion_tokens
        if self._first is None:
            if status.started_at is None:
                return ""
            self._first = (now, lines, tokens)
        since, lines_before, tokens_before = self._first
        seconds = max(now - since, 1e-6)
        parts = []
        if tokens > tokens_before:
            parts.append(f"{(tokens - tokens_before) / seconds:.0f} tokens/s")
        if lines > lines_before and lines < status.spec.lines:
            left = (status.spec.lines - lines) * seconds / (lines - lines_before)
            parts.append(f"{_duration(left)} left")
        return ", ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _print(console: Console, text: str) -> None:
    console.out(text, highlight=False)
