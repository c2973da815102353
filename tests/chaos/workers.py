"""One worker of a fleet: a process after another, as often as it has to be started.

Owns the starting and burying of processes and their signals. Never decides when.
"""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.services import reaper


@dataclass
class Worker:
    """`python -m worker.process 0`; the fleet is its supervisor."""

    name: str
    log: Path
    environment: dict[str, str]
    starts: int = 0
    #: The exit statuses of those that have ended; negative where a signal ended it.
    exits: list[int] = field(default_factory=list)
    #: Not to be started again.
    resting: bool = False
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.start()

    @property
    def pid(self) -> int:
        """Of its process."""
        return self.process.pid

    @property
    def dead(self) -> bool:
        """Whether its process has ended."""
        return self.process.poll() is not None

    def start(self) -> None:
        """Start a process, in place of one that has ended."""
        if self.starts:
            self._bury()
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "worker.process", "0"],
                stdin=subprocess.PIPE,  # it drains when this ends
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
            )
        self.starts += 1
        reaper().guard(self.process.pid)

    def end(self) -> None:
        """SIGKILL, for good."""
        self.resting = True
        if not self.dead:  # else its number may be another's by now
            self.process.kill()
        self._bury()

    def engines(self) -> list[int]:
        """The processes of its engine, the first of them first."""
        with suppress(psutil.NoSuchProcess):
            return [child.pid for child in psutil.Process(self.pid).children(recursive=True)]
        return []

    def _bury(self) -> None:
        self.exits.append(self.process.wait())
        if self.process.stdin is not None:
            self.process.stdin.close()
        reaper().release(self.pid)


def send(pid: int, number: signal.Signals) -> bool:
    """Send a signal; False where the process is gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def kill_ours(pids: set[int], folder: Path) -> None:
    """SIGKILL to those that are processes of the fleet in this folder: a number may be another's by now.

    Engines are in groups of their own, and one that is suspended does not notice that its worker is gone.
    """
    for pid in pids:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            process = psutil.Process(pid)
            if process.environ().get("CHAOS_FOLDER") == str(folder):
                process.kill()
