"""Shows a job's progress while it runs: a bar at a terminal, plain lines elsewhere, or JSON lines.

Owns the look of progress. Where the statuses come from, and what a job's end means, is the caller's affair.
"""

import time
from collections.abc import Callable, Iterator

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.text import Text

from jobs.records import JobStatus
from producer.pace import Pace, Rates
from producer.view import as_json, failed_so_far, printable, status_fields, summary

#: Seconds between two plain lines while only counts change.
_PLAIN_SECONDS = 5.0

Follower = Callable[[Iterator[JobStatus], Console], JobStatus]


def follower(console: Console, *, as_json_lines: bool) -> Follower:
    """The way to show progress that suits the console."""
    if as_json_lines:
        return follow_as_json
    return follow_with_bar if console.is_terminal else follow_plainly


def follow_with_bar(statuses: Iterator[JobStatus], console: Console) -> JobStatus:
    """A progress bar over what there is to tell; returns the last status."""
    bar = Progress(
        SpinnerColumn(),  # lines may take a while, and end together
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[counts]}", markup=False),
        console=console,
        expand=True,
    )
    task = bar.add_task("", total=None, counts="")
    details = Text(no_wrap=True, overflow="ellipsis")
    problem = Text(style="yellow", no_wrap=True, overflow="ellipsis")
    pace = Pace()
    with Live(Group(bar, details), console=console, transient=True) as live:
        for status in statuses:
            bar.update(
                task,
                description=status.state,
                total=status.spec.lines,
                completed=status.done_lines,
                counts=_counts(status),
            )
            details.plain = "  " + ", ".join(_details(status, pace.seen(status)))
            problem.plain = f"  {printable(status.problem or '')}"
            rows = (bar, details, problem) if status.problem else (bar, details)
            live.update(Group(*rows), refresh=True)
    _print(console, summary(status))
    return status


def follow_plainly(statuses: Iterator[JobStatus], console: Console) -> JobStatus:
    """A line when the state changes, and now and then when only counts do; returns the last status."""
    pace = Pace()
    said: tuple[object, ...] = ()
    said_at = 0.0
    for status in statuses:
        rates = pace.seen(status)
        news = (status.state, status.problem)
        counts = (status.done_lines, failed_so_far(status))
        due = time.monotonic() - said_at >= _PLAIN_SECONDS
        if not status.state.final and (news != said[:2] or (due and counts != said[2:])):
            words = [f"{status.spec.id} {status.state}: {_counts(status)}", *_details(status, rates)]
            _print(console, ", ".join([*words, printable(status.problem)] if status.problem else words))
            said, said_at = (*news, *counts), time.monotonic()
    _print(console, summary(status))
    return status


def follow_as_json(statuses: Iterator[JobStatus], console: Console) -> JobStatus:
    """One JSON line for every change; returns the last status."""
    pace = Pace()
    last: dict[str, object] = {}
    for status in statuses:
        rates = pace.seen(status)
        fields = status_fields(status)
        if fields != last:  # a rate alone is no news: it changes with every look
            _print(console, as_json({**fields, **_rounded(rates)}))
            last = fields
    return status


def _counts(status: JobStatus) -> str:
    return f"{status.done_lines}/{status.spec.lines} lines, {failed_so_far(status)} failed"


def _details(status: JobStatus, rates: Rates) -> list[str]:
    details = [f"{status.completion_tokens} tokens"]
    if rates.tokens_per_second is not None:
        details.append(f"{rates.tokens_per_second:.0f} tokens/s")
    if rates.seconds_left is not None:
        details.append(f"{_duration(rates.seconds_left)} left")
    if status.spec.deadline is not None:
        until = status.spec.deadline - time.time()
        details.append(f"deadline in {_duration(until)}" if until > 0 else "deadline has passed")
    return details


def _rounded(rates: Rates) -> dict[str, object]:
    rate, left = rates
    return {
        "tokens_per_second": None if rate is None else round(rate, 1),
        "seconds_left": None if left is None else round(left),
    }


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours}:{minutes:02}:{rest:02}"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _print(console: Console, text: str) -> None:
    console.out(text, highlight=False)
