"""One engine's operating-system process, with its ranks: started, listened to, ended, its end described.

Owns the process group and the socket to it. Never knows what is asked of the engine.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence

import msgspec
import structlog

from worker.protocol import EngineOptions, FromEngine, ToEngine, receive_from_engine, send

log = structlog.get_logger(__name__)

#: Seconds that an engine asked to end may take before it is killed.
END_SECONDS = 10.0
#: What runs in the process, by kind of device; the engine proper for all others.
_PROGRAMS = {"echo": "worker.echo_engine"}
_PROGRAM = "worker.engine_main"


class EngineProcess:
    """A running engine. Sending is safe from many threads, receiving is one thread's."""

    def __init__(self, options: EngineOptions, environment: Mapping[str, str]) -> None:
        self._ours, theirs = socket.socketpair()
        self._sending = threading.Lock()
        self._killed_for = ""
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [
                    sys.executable,
                    "-P",  # a folder called `model` where the user stands is not our package
                    "-m",
                    _PROGRAMS.get(options.device, _PROGRAM),
                    str(theirs.fileno()),
                    msgspec.json.encode(options).decode(),
                ],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # a group of its own: the ranks end together
            )

    @property
    def pid(self) -> int:
        """Of rank 0, and of the process group."""
        return self._process.pid

    def send(self, messages: Sequence[ToEngine]) -> None:
        """Send, or leave it: that an engine is gone is for whoever receives to notice."""
        with self._sending, contextlib.suppress(OSError):
            send(self._ours, messages)

    def received(self) -> Iterator[list[FromEngine]]:
        """What the engine says, until it is gone."""
        with self._ours.makefile("rb") as stream:
            while (messages := receive_from_engine(stream)) is not None:
                yield messages

    def hang_up(self) -> None:
        """Ask the engine to end: it does when its worker is gone."""
        with contextlib.suppress(OSError):
            self._ours.shutdown(socket.SHUT_RDWR)

    def kill(self, reason: str) -> None:
        """SIGKILL to all ranks; `reason` goes into the description of the end."""
        self._killed_for = reason
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def end(self) -> str:
        """Wait for an engine that is ending, then kill what is left of its group; how it ended."""
        try:
            status = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            log.warning("engine does not end: killed", pid=self._process.pid)
            status = -signal.SIGKILL
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._ours.close()
        return self._described(status)

    @property
    def hung(self) -> bool:
        """Whether it was killed for not moving."""
        return bool(self._killed_for)

    def _described(self, status: int) -> str:
        if self._killed_for:
            return f"was killed: {self._killed_for}"
        if status < 0:
            return f"was killed by {signal.Signals(-status).name}"
        return f"ended with status {status}"
