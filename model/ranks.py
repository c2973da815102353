"""The other ranks' processes: started, watched and ended by rank 0. What they compute is `runner.py`'s.

Each is a fresh interpreter whose environment is complete before torch is imported. It ends when its standard
input does, so it can not outlive rank 0; on Linux the kernel sees to that as well.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from model.errors import RankError

_START_SECONDS = 600.0
_STOP_SECONDS = 5.0
_PR_SET_PDEATHSIG = 1


#: First of the 16 host ports that HCCL takes. Other devices' ranks do not look at it.
HCCL_PORTS = "HCCL_IF_BASE_PORT"


def hccl_ports(master_port: int) -> str:
    """What the environment says, or ports of this engine's own: with another rendezvous port, others.

    Of any 340 consecutive rendezvous ports no two share one. HCCL's own default is the first, 60000.
    """
    return os.environ.get(HCCL_PORTS) or str(60000 + 16 * (master_port % 340))


class Ranks:
    """Ranks 1 to world - 1 as child processes of this one, in its process group."""

    def __init__(self, world: int, master_port: int, settings: str) -> None:
        """Start them. `settings` is one line for each rank's standard input."""
        self._first_death: tuple[int, int] | None = None
        self._died = threading.Condition()
        self._closing = False
        self._children = [self._start(rank, world, master_port) for rank in range(1, world)]
        for rank, child in enumerate(self._children, 1):
            threading.Thread(target=self._watch, args=(rank, child), daemon=True).start()
            self._tell(child, settings)

    def _start(self, rank: int, world: int, master_port: int) -> subprocess.Popen[str]:
        package = Path(__file__).resolve().parent.parent
        environment = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(master_port),
            HCCL_PORTS: hccl_ports(master_port),
            "PYTHONPATH": os.pathsep.join(filter(None, (str(package), os.environ.get("PYTHONPATH")))),
        }
        with _ctrl_c_blocked():
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "model.runner"],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                text=True,
            )

    @staticmethod
    def _tell(child: subprocess.Popen[str], line: str) -> None:
        assert child.stdin  # noqa: S101 - Popen was asked for a pipe
        try:
            child.stdin.write(line + "\n")
            child.stdin.flush()
        except BrokenPipeError:
            return  # it died already, which its watcher reports

    def _watch(self, rank: int, child: subprocess.Popen[str]) -> None:
        status = child.wait()
        with self._died:
            if self._first_death is None and not self._closing:
                self._first_death = (rank, status)
            self._died.notify_all()

    def check(self, wait_seconds: float = 0.0) -> None:
        """Raise RankError if a rank has died, waiting this long for one that is about to."""
        with self._died:
            self._died.wait_for(lambda: self._first_death is not None, wait_seconds)
            if self._first_death is not None:
                rank, status = self._first_death
                how = (
                    f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with {status}"
                )
                raise RankError(f"rank {rank} of {len(self._children) + 1} {how}; start the engine again")

    def close(self) -> None:
        """End every rank, by force if one does not end by itself."""
        with self._died:
            self._closing = True
        for child in self._children:
            if child.stdin:
                child.stdin.close()
        deadline = time.monotonic() + _STOP_SECONDS
        for child in self._children:
            try:
                child.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


@contextmanager
def _ctrl_c_blocked() -> Iterator[None]:
    """Have what is started meanwhile never see a terminal's Ctrl-C: what that ends is for rank 0 to say."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def live_with_parent() -> str:
    """In a rank's process: return the line that rank 0 sent, and end this process when rank 0 does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    settings = sys.stdin.readline()
    threading.Thread(target=_end_with_input, daemon=True).start()
    return settings


def _end_with_input() -> NoReturn:
    sys.stdin.read()
    os._exit(0)
