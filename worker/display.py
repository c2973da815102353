"""How the groups of a supervisor look: a table that stays at a terminal's end, or log events elsewhere.

Owns the look, and standard error while the table stands: what this process and those that it starts write
there appears above it. Never decides anything.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import TextIO

import structlog
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from jobs.settings import Settings

log = structlog.get_logger(__name__)

_TABLE_SECONDS, _LOG_SECONDS = 1.0, 10.0
#: For the last lines of processes that have ended, once the table is gone.
_REST_SECONDS = 1.0
_STYLES = {"serving": "green", "draining": "yellow", "restarting": "red", "failed": "red"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How one group stands."""

    group: str
    #: starting, serving, draining; restarting while the back-off runs; ended or, for good, failed.
    state: str
    pid: int | None
    restarts: int
    engine_starts: int
    #: In hand; lines and tokens are those of the group since the supervisor started.
    shards: int
    lines: int
    tokens: int
    tokens_per_second: float


Show = Callable[[Sequence[Standing]], None]


def fleet_display(settings: Settings) -> AbstractContextManager[Show]:
    """The way to show groups that suits standard error; what it gives is to be called often."""
    at_terminal = sys.stderr.isatty() and os.environ.get("TERM") not in (None, "dumb")
    return _table() if at_terminal and settings.log_format == "console" else _events()


@contextmanager
def _events() -> Iterator[Show]:
    yield _paced(
        lambda standings: log.info("fleet", groups=[asdict(each) for each in standings]), _LOG_SECONDS
    )


@contextmanager
def _table() -> Iterator[Show]:
    with _captured_stderr() as (terminal, written):
        console = Console(file=terminal)
        printer = threading.Thread(target=_print_above, args=(written, console), daemon=True)
        with Live(
            console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
        ) as live:
            printer.start()
            yield _paced(partial(_refresh, console, live), _TABLE_SECONDS)
    # A process that is left and still holds the pipe is not waited for.
    printer.join(_REST_SECONDS)
    if not printer.is_alive():
        written.close()
        terminal.close()


def _paced(show: Show, seconds: float) -> Show:
    """Show when a group's state has changed, else once in so many seconds."""
    shown_at, shown = -seconds, [""]

    def paced(standings: Sequence[Standing]) -> None:
        nonlocal shown_at, shown
        now, states = time.monotonic(), [each.state for each in standings]
        if states != shown or now - shown_at >= seconds:
            shown_at, shown = now, states
            show(standings)

    return paced


@contextmanager
def _captured_stderr() -> Iterator[tuple[TextIO, TextIO]]:
    """The terminal behind standard error, and what is written to standard error meanwhile.

    The descriptor itself is replaced: loggers, libraries and child processes write to the pipe unawares.
    """
    descriptor = sys.stderr.fileno()
    terminal = os.fdopen(os.dup(descriptor), "w")
    reading, writing = os.pipe()
    os.dup2(writing, descriptor)
    os.close(writing)
    try:
        yield terminal, os.fdopen(reading, errors="replace")
    finally:
        sys.stderr.flush()
        os.dup2(terminal.fileno(), descriptor)


def _print_above(written: TextIO, console: Console) -> None:
    for line in written:
        with suppress(OSError):  # the terminal is gone: read on all the same, or the writers would block
            console.print(Text.from_ansi(line.rstrip("\n")), soft_wrap=True, highlight=False)


def _refresh(console: Console, live: Live, standings: Sequence[Standing]) -> None:
    with suppress(OSError):  # as above
        # By itself the console looks at the standard streams for its size, and one of them is the pipe.
        width, height = os.get_terminal_size(console.file.fileno())
        if width and height:
            console.size = (width, height)
        live.update(_rendered(standings), refresh=True)


def _rendered(standings: Sequence[Standing]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_footer=len(standings) > 1)
    table.add_column("group", footer="all")
    table.add_column("state")
    table.add_column("pid", justify="right")
    sums = (
        ("restarts", sum(each.restarts for each in standings)),
        ("shards", sum(each.shards for each in standings)),
        ("lines", sum(each.lines for each in standings)),
        ("tokens", sum(each.tokens for each in standings)),
    )
    for name, total in sums:
        table.add_column(name, justify="right", footer=f"{total:,}")
    pace = sum(each.tokens_per_second for each in standings)
    table.add_column("tokens/s", justify="right", footer=f"{pace:,.0f}")
    for each in standings:
        table.add_row(
            each.group,
            Text(each.state, style=_STYLES.get(each.state, "")),
            "" if each.pid is None else str(each.pid),
            *(f"{count:,}" for count in (each.restarts, each.shards, each.lines, each.tokens)),
            f"{each.tokens_per_second:,.0f}",
        )
    return table
