"""Child processes that end when this one does, in good order where there is time for it.

Owns starting, watching and ending one child. Never knows what it is for.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from producer.errors import LocalError

_TAIL_BYTES = 64 * 1024
_WORDS = 500

#: Has the kernel send SIGTERM when we die of something that leaves us no time, and becomes the child. It is
#: a program of its own because code between fork and exec is not safe in a process with threads.
_TIED = """
import ctypes, os, sys
parent, command = int(sys.argv[1]), sys.argv[2:]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 15)
if os.getppid() != parent:
    sys.exit(1)
os.execvp(command[0], command)
"""


class Child:
    """A running program in a process group of its own, out of reach of the terminal's Ctrl-C."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str],
        stdin: bytes = b"",
    ) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as out:
            self._process = subprocess.Popen(  # noqa: S603 - the command is ours
                [sys.executable, "-I", "-c", _TIED, str(os.getpid()), *command],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        pipe = self._process.stdin
        if pipe is not None:
            with suppress(BrokenPipeError), pipe:
                pipe.write(stdin)

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def death(self) -> LocalError:
        """What to tell when it has ended by itself: why, and where it wrote more."""
        return LocalError(
            f"the {self.name} ended with status {self._process.poll()}: {last_words(self.log)}",
            f"its log is {self.log}",
        )

    def stop(self, seconds: float) -> None:
        """SIGTERM, and SIGKILL to the whole group when the time is over; returns once it is gone."""
        if self.alive:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def last_words(log: Path) -> str:
    """Why a program ended: the last reason among the structured records of its log, else its last line."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines()]
    for line in reversed(lines):
        if (reason := _reason(line)) is not None:
            return reason[:_WORDS]
    return next((line[:_WORDS] for line in reversed(lines) if line), "it said nothing")


def _reason(line: str) -> str | None:
    try:
        record = msgspec.json.decode(line)
    except msgspec.DecodeError:
        return None
    reason = record.get("reason") if isinstance(record, dict) else None
    return reason if isinstance(reason, str) else None
