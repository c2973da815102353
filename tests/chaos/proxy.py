"""A TCP proxy with faults: what a network does to the connections between a worker and its services.

Owns a listener, the connections through it and their present mode, which may be changed at any time from any
thread. What single HTTP requests meet is said in `tests.chaos.http_faults`. Never knows what the bytes mean.
"""

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from tests.chaos.http_faults import RequestFaults, Verdict, read_request
from tests.services import free_port, wait_until

T = TypeVar("T")

_CHUNK: Final = 65536
#: A request's head may be so long.
_LIMIT: Final = 1024 * 1024
#: Close at once and say so: the other side gets a reset instead of an end.
_RESET: Final = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Pass:
    """All is well."""


@dataclass(frozen=True, slots=True)
class Blackhole:
    """Whatever is sent is lost, new connections included. At its end those that lost something are reset."""


@dataclass(frozen=True, slots=True)
class Stall:
    """Nothing arrives for as long as this lasts; then all of it does."""


@dataclass(frozen=True, slots=True)
class Delay:
    """Each chunk arrives late."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Reset:
    """Connections are reset, those that stand and those to come."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Nobody listens; the connections that stand are reset."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Each connection ends once so many more bytes of answers have passed, be it in the middle of one."""

    after: int


Mode = Pass | Blackhole | Stall | Delay | Reset | Refuse | Cut


class _Connection:
    """Both ends of one connection."""

    def __init__(self, client: asyncio.StreamWriter, upstream: asyncio.StreamWriter | None) -> None:
        self.client = client
        self.upstream = upstream
        self.swallowed = False
        #: The answer that comes next is lost, and the connection with it.
        self.lose_answer = False
        self.answered = 0

    def reset(self) -> None:
        """End it as a crash does."""
        for writer in filter(None, (self.client, self.upstream)):
            _reset(writer)

    def close(self) -> None:
        """End it in good order: what was written arrives."""
        for writer in filter(None, (self.client, self.upstream)):
            writer.close()


class Proxy:
    """A port in front of another port of this machine."""

    def __init__(self, upstream: int, *, requests: RequestFaults | None = None) -> None:
        """With `requests` it reads HTTP/1.1 and asks for each request what becomes of it."""
        self.port = 0
        self._upstream = upstream
        self._requests = requests
        self._mode: Mode = Pass()
        self._hits = 0
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._changed = asyncio.Condition()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def __enter__(self) -> "Proxy":
        self._thread.start()
        self._call(self._listen())
        return self

    def __exit__(self, *_exception: object) -> None:
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def hits(self) -> int:
        """How often the present mode has met traffic: chunks held or lost, connections reset."""
        return self._hits

    @property
    def connections(self) -> int:
        """Connections that stand now."""
        return len(self._connections)

    def set(self, mode: Mode) -> None:
        """Change the mode; returns once it is in force."""
        self._call(self._set(mode))

    def reset_connections(self) -> int:
        """Reset those that stand, once; how many they were."""
        return self._call(self._reset_all())

    def met(self, *, seconds: float, hits: int = 1) -> bool:
        """Wait until the mode has met traffic; False if it did not within the limit."""
        try:
            wait_until(lambda: self._hits >= hits, seconds=seconds, what="traffic")
        except TimeoutError:
            return False
        return True

    # In the loop's thread

    def _call(self, action: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(action, self._loop).result(20)

    async def _listen(self) -> None:
        for _ in range(20):
            port = self.port or free_port()
            try:
                self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, limit=_LIMIT)
            except OSError:
                await asyncio.sleep(0.05)
                continue
            self.port = port
            return
        raise OSError(f"port {self.port or 'of the proxy'} is taken")

    async def _unlisten(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _end(self) -> None:
        await self._unlisten()
        await self._reset_all()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _set(self, mode: Mode) -> None:
        before, self._mode, self._hits = self._mode, mode, 0
        if isinstance(before, Refuse):
            await self._listen()
        if isinstance(before, Blackhole):
            for connection in [each for each in self._connections if each.swallowed]:
                connection.reset()
        if isinstance(mode, Refuse):
            await self._unlisten()
        if isinstance(mode, Reset | Refuse):
            await self._reset_all()
        if isinstance(mode, Cut):
            for connection in self._connections:
                connection.answered = 0
        async with self._changed:
            self._changed.notify_all()

    async def _reset_all(self) -> int:
        standing = list(self._connections)
        for connection in standing:
            connection.reset()
        self._hits += len(standing)
        return len(standing)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        connection = _Connection(writer, None)
        if isinstance(self._mode, Reset):
            self._hits += 1
            connection.reset()
            return
        self._connections.add(connection)
        try:
            answers, connection.upstream = await asyncio.open_connection("127.0.0.1", self._upstream)
            await self._relay(connection, reader, answers)
            connection.close()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            connection.reset()  # cancelled is whoever still stands at the proxy's end
        finally:
            self._connections.discard(connection)

    async def _relay(
        self, connection: _Connection, reader: asyncio.StreamReader, answers: asyncio.StreamReader
    ) -> None:
        """Both ways, until either side ends."""
        up = self._pump_up if self._requests is None else self._pump_requests
        pumps = [
            asyncio.create_task(up(connection, reader)),
            asyncio.create_task(self._pump_down(connection, answers)),
        ]
        try:
            done, _ = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in done:
                pump.result()
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump_up(self, connection: _Connection, reader: asyncio.StreamReader) -> None:
        while chunk := await reader.read(_CHUNK):
            await self._forward(connection, chunk, connection.upstream)

    async def _pump_down(self, connection: _Connection, answers: asyncio.StreamReader) -> None:
        while chunk := await answers.read(_CHUNK):
            if connection.lose_answer:
                connection.reset()
                return
            if isinstance(self._mode, Cut):
                left = max(0, self._mode.after - connection.answered)
                connection.answered += len(chunk)
                if len(chunk) > left:
                    self._hits += 1
                    connection.client.write(chunk[:left])
                    return
            await self._forward(connection, chunk, connection.client)

    async def _pump_requests(self, connection: _Connection, reader: asyncio.StreamReader) -> None:
        """HTTP/1.1, one request after another: what becomes of each is `RequestFaults`' to say."""
        assert self._requests is not None
        while (request := await read_request(reader)) is not None:
            clears = self._requests.clears
            match self._requests.verdict(request.method, request.target):
                case Verdict.SLOW_DOWN:
                    connection.client.write(Verdict.SLOW_DOWN.value)
                    await connection.client.drain()
                    continue
                case Verdict.SILENCE:
                    await self._requests.released(clears)
                    connection.reset()
                    return
                case Verdict.LOST:
                    connection.lose_answer = True
                case Verdict.PASS:
                    pass
            await self._forward(connection, request.data, connection.upstream)

    async def _forward(
        self, connection: _Connection, chunk: bytes, target: asyncio.StreamWriter | None
    ) -> None:
        assert target is not None
        if not isinstance(self._mode, Pass):
            self._hits += 1
        if isinstance(self._mode, Delay):
            await asyncio.sleep(self._mode.seconds)
        if isinstance(self._mode, Stall):
            async with self._changed:
                await self._changed.wait_for(lambda: not isinstance(self._mode, Stall))
        if isinstance(self._mode, Blackhole) or connection.swallowed:
            connection.swallowed = True
            return
        target.write(chunk)
        await target.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    taken: socket.socket | None = writer.get_extra_info("socket")
    if taken is not None and taken.fileno() >= 0 and not writer.transport.is_closing():
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
