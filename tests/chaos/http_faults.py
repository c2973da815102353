"""What single HTTP requests meet on their way to the store: an answer of 503, silence, or an answer lost.

Owns the choice, by count or by share, and the reading of one request. Never opens a connection.
"""

import asyncio
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

_SLOW_DOWN_BODY: Final = (
    b'<?xml version="1.0" encoding="UTF-8"?>'
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)


class Verdict(Enum):
    """What becomes of a request."""

    PASS = b""
    #: The store says that it has too much to do; it does not do it.
    SLOW_DOWN = b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n%s" % (
        len(_SLOW_DOWN_BODY),
        _SLOW_DOWN_BODY,
    )
    #: The store takes the request and never answers, nor does it.
    SILENCE = b"silence"
    #: The store does what is asked, and the answer is lost.
    LOST = b"lost"


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it came."""

    method: str
    target: str
    data: bytes


Matches = Callable[[str, str], bool]


def anything(method: str, target: str) -> bool:
    """Every request."""
    del method, target
    return True


def writes(method: str, target: str) -> bool:
    """Requests that put an object."""
    del target
    return method == "PUT"


class RequestFaults:
    """Which verdict the next requests get. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left = 0
        self._share = 0.0
        self._verdict = Verdict.PASS
        self._matches: Matches = anything
        self._draws = random.Random()  # noqa: S311 - chance, not secrecy
        self._met = 0
        self._clears = 0
        self._silent: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    @property
    def met(self) -> int:
        """Requests that got another verdict than to pass, since the start."""
        return self._met

    @property
    def clears(self) -> int:
        """How often it was cleared: to be read before a verdict, for `released`."""
        return self._clears

    def next(self, count: int, verdict: Verdict, matches: Matches = anything) -> None:
        """The next `count` requests that match get this verdict."""
        with self._lock:
            self._left, self._share, self._verdict, self._matches = count, 0.0, verdict, matches

    def share(self, share: float, verdict: Verdict, seed: int, matches: Matches = anything) -> None:
        """From now on each request that matches gets this verdict with the probability `share`."""
        with self._lock:
            self._left, self._share, self._verdict, self._matches = 0, share, verdict, matches
            self._draws = random.Random(seed)  # noqa: S311

    def clear(self) -> None:
        """All requests pass; the silent ones are reset."""
        with self._lock:
            self._left, self._share, self._clears = 0, 0.0, self._clears + 1
            silent, self._silent = self._silent, []
        for loop, event in silent:
            loop.call_soon_threadsafe(event.set)

    def verdict(self, method: str, target: str) -> Verdict:
        """What becomes of this request."""
        with self._lock:
            if not self._matches(method, target):
                return Verdict.PASS
            if self._left > 0:
                self._left -= 1
            elif not (self._share and self._draws.random() < self._share):
                return Verdict.PASS
            self._met += 1
            return self._verdict

    async def released(self, clears: int) -> None:
        """Wait until the silence ends, which may have happened since `clears` was read."""
        event = asyncio.Event()
        with self._lock:
            if self._clears != clears:
                return
            self._silent.append((asyncio.get_running_loop(), event))
        await event.wait()


async def read_request(reader: asyncio.StreamReader) -> Request | None:
    """The next request whole, its body included; None where the client has ended."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None
    first, *fields = head.decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (f.partition(":") for f in fields)}
    body = b""
    if "chunked" in headers.get("transfer-encoding", "").lower():
        body = await _chunked(reader)
    elif length := int(headers.get("content-length", "0")):
        body = await reader.readexactly(length)
    method, target, _ = first.split(" ", 2)
    return Request(method, target, head + body)


async def _chunked(reader: asyncio.StreamReader) -> bytes:
    """A chunked body as it came, trailers included."""
    data = b""
    while True:
        line = await reader.readuntil(b"\r\n")
        size = int(line.split(b";")[0], 16)
        data += line
        if size == 0:
            while (trailer := await reader.readuntil(b"\r\n")) != b"\r\n":
                data += trailer
            return data + b"\r\n"
        data += await reader.readexactly(size + 2)
