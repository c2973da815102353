"""How groups look: when an event is due, what the table says, and that logs stay readable above it."""

import os
import pty
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace

import pytest
from rich.console import Console
from structlog.testing import capture_logs

from jobs.settings import Settings
from worker import display
from worker.display import Standing, fleet_display

SERVING = Standing(
    group="echo:0",
    state="serving",
    pid=4711,
    restarts=1,
    engine_starts=2,
    shards=3,
    lines=12345,
    tokens=6789,
    tokens_per_second=98.6,
)
STARTING = replace(SERVING, group="echo:1", state="starting", pid=None, lines=5, tokens_per_second=0.0)


def test_elsewhere_than_at_a_terminal_a_change_of_state_is_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(display.time, "monotonic", lambda: now)
    with capture_logs() as events, fleet_display(Settings(log_format="json")) as show:
        show([SERVING, STARTING])
        assert [event["event"] for event in events] == ["fleet"]
        assert events[0]["groups"][0] == {
            "group": "echo:0",
            "state": "serving",
            "pid": 4711,
            "restarts": 1,
            "engine_starts": 2,
            "shards": 3,
            "lines": 12345,
            "tokens": 6789,
            "tokens_per_second": 98.6,
        }
        now += 9.0
        show([replace(SERVING, lines=20000), STARTING])
        assert len(events) == 1
        show([SERVING, replace(STARTING, state="serving")])
        assert len(events) == 2
        now += 9.0
        show([SERVING, replace(STARTING, state="serving")])
        assert len(events) == 2
        now += 1.0
        show([SERVING, replace(STARTING, state="serving")])
        assert len(events) == 3


def test_the_table_has_a_row_for_each_group_and_their_sum() -> None:
    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    console.print(display._rendered([SERVING, STARTING]))
    console.file.close()
    rows = [line.split() for line in console.export_text().splitlines()]
    assert rows == [
        ["group", "state", "pid", "restarts", "shards", "lines", "tokens", "tokens/s"],
        ["echo:0", "serving", "4711", "1", "3", "12,345", "6,789", "99"],
        ["echo:1", "starting", "1", "3", "5", "6,789", "0"],
        ["all", "2", "6", "12,350", "13,578", "99"],
    ]


def test_one_group_has_no_sum() -> None:
    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    console.print(display._rendered([SERVING]))
    console.file.close()
    assert "all" not in console.export_text()


AT_A_TERMINAL = """
import subprocess, sys
from jobs.settings import Settings
from tests.unit.worker.test_display import SERVING, STARTING
from worker.display import fleet_display
with fleet_display(Settings(log_format="console")) as show:
    for number in range(3):
        show([SERVING, STARTING] if number % 2 else [STARTING, SERVING])
        print(f"own line {number}", file=sys.stderr)
        subprocess.run([sys.executable, "-c", "import os; os.write(2, b'line of a child\\\\n')"])
print("after the table", file=sys.stderr)
"""


def at_a_terminal(code: str) -> str:
    """What a program writes to a terminal of its own."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"},
    )
    os.close(theirs)
    written = b""
    with suppress(OSError):  # the terminal's end
        while chunk := os.read(ours, 65536):
            written += chunk
    os.close(ours)
    assert process.wait() == 0, written.decode(errors="replace")
    return written.decode()


def screen(written: str) -> list[str]:
    """The lines that stay: what Live erases is gone, as on a real terminal."""
    lines, row = [""], 0
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", written):
        if part == "\n":
            row += 1
            lines.extend([""] * (row + 1 - len(lines)))
        elif part == "\x1b[1A":
            row -= 1
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part != "\r" and not part.startswith("\x1b"):
            lines[row] += part
    return [line.rstrip() for line in lines if line.strip()]


def test_at_a_terminal_lines_stay_above_a_table_that_goes_in_the_end() -> None:
    written = at_a_terminal(AT_A_TERMINAL)
    assert "12,345" in written
    expected = [line for number in range(3) for line in (f"own line {number}", "line of a child")]
    assert screen(written) == [*expected, "after the table"]
