"""What a worker process tells the supervisor of itself: JSON lines through a pipe that it inherits.

Owns both ends of the pipe. A report may be lost and never holds anybody up; nothing is decided by one.
"""

import os
from collections import deque
from typing import Literal

import msgspec
import structlog

log = structlog.get_logger(__name__)

#: The variable that names the pipe's descriptor in a worker process.
REPORT_FD = "LONGHAUL_REPORT_FD"
_WINDOW_SECONDS = 10.0

_encoder = msgspec.json.Encoder()


class GroupReport(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker process stands."""

    group: str
    state: Literal["starting", "serving", "draining"]
    #: In hand now.
    shards: int
    #: Since the process started.
    lines: int
    tokens: int
    engine_starts: int


_decoder = msgspec.json.Decoder(GroupReport)


class Reporter:
    """The worker's end of the pipe; without a supervisor that reads, it does nothing."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    @classmethod
    def open(cls) -> "Reporter":
        """The pipe that the environment names."""
        named = os.environ.get(REPORT_FD, "")
        if not named.isdecimal():
            return cls(None)
        descriptor = int(named)
        try:
            os.set_blocking(descriptor, False)
            os.set_inheritable(descriptor, False)
        except OSError:  # the variable came down from elsewhere: no such descriptor here
            return cls(None)
        return cls(descriptor)

    def send(self, report: GroupReport) -> None:
        """Tell; a pipe that is full drops the report, one that nobody reads any more ends the telling."""
        if self._descriptor is None:
            return
        try:
            # Less than PIPE_BUF, so it is written whole or not at all.
            os.write(self._descriptor, _encoder.encode(report) + b"\n")
        except BlockingIOError:
            return
        except BrokenPipeError:
            self.close()

    def close(self) -> None:
        """Tell no more."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class Reports:
    """The supervisor's end: what one worker process has told so far."""

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._reading, False)
        self._rest = b""
        #: Time of arrival and tokens of the reports of the last seconds.
        self._window: deque[tuple[float, int]] = deque()
        self.latest: GroupReport | None = None

    @property
    def descriptor(self) -> int:
        """For the worker process to inherit; `started` once it has."""
        return self._writing

    def started(self) -> None:
        """The worker process alone holds its end now, so that its death ends the reports."""
        os.close(self._writing)

    def read(self, now: float) -> None:
        """Take in what has arrived."""
        for line in self._lines():
            try:
                self.latest = _decoder.decode(line)
            except msgspec.DecodeError as error:
                log.warning("report not understood", reason=str(error))
                continue
            self._window.append((now, self.latest.tokens))
        while self._window and now - self._window[0][0] > _WINDOW_SECONDS:
            self._window.popleft()

    def tokens_per_second(self) -> float:
        """Over the last ten seconds before `read`."""
        if len(self._window) < 2:
            return 0.0
        (since, before), (until, after) = self._window[0], self._window[-1]
        return (after - before) / (until - since) if until > since else 0.0

    def close(self) -> None:
        """Read no more."""
        os.close(self._reading)

    def _lines(self) -> list[bytes]:
        while True:
            try:
                chunk = os.read(self._reading, 65536)
            except BlockingIOError:
                break
            if not chunk:
                break
            self._rest += chunk
        *lines, self._rest = self._rest.split(b"\n")
        return lines
