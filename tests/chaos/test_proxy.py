"""The proxy's own promises: what passes, what is lost, and what each side sees of it."""

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from tests.chaos.http_faults import RequestFaults, Verdict, writes
from tests.chaos.proxy import Blackhole, Cut, Delay, Pass, Proxy, Refuse, Reset, Stall
from tests.services import wait_until


@dataclass
class Echo:
    """A server that answers with what it gets, and keeps it."""

    port: int
    heard: bytearray = field(default_factory=bytearray)


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = socket.create_server(("127.0.0.1", 0))
    upstream = Echo(server.getsockname()[1])
    threads: list[threading.Thread] = []

    def serve(connection: socket.socket) -> None:
        with connection:
            while data := received(connection):
                upstream.heard += data
                connection.sendall(data)

    def accept() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=serve, args=(connection,), daemon=True))
            threads[-1].start()

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    yield upstream
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    for thread in [acceptor, *threads]:
        thread.join(10)


def received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except OSError:
        return b""


@contextmanager
def connected(proxy: Proxy, *, seconds: float = 10) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=seconds) as connection:
        yield connection


def exchange(connection: socket.socket, data: bytes) -> bytes:
    connection.sendall(data)
    answer = b""
    while len(answer) < len(data):
        more = connection.recv(65536)
        if not more:
            break
        answer += more
    return answer


def test_bytes_pass_both_ways(echo: Echo) -> None:
    data = bytes(range(256)) * 4096
    with Proxy(echo.port) as proxy, connected(proxy) as connection:
        connection.settimeout(10)
        sender = threading.Thread(target=connection.sendall, args=(data,))
        sender.start()
        answer = b""
        while len(answer) < len(data):
            answer += connection.recv(65536)
        sender.join()
        assert answer == data
        assert proxy.hits == 0


def test_a_blackhole_swallows_and_what_lost_bytes_is_reset_afterwards(echo: Echo) -> None:
    with Proxy(echo.port) as proxy, connected(proxy, seconds=0.2) as old, connected(proxy) as idle:
        assert exchange(old, b"before") == b"before"
        wait_until(lambda: proxy.connections == 2, seconds=5, what="both connections")
        proxy.set(Blackhole())
        old.sendall(b"lost")
        assert proxy.met(seconds=5)
        with pytest.raises(TimeoutError):
            old.recv(10)
        with connected(proxy, seconds=0.2) as new:
            new.sendall(b"lost as well")
            with pytest.raises(TimeoutError):
                new.recv(10)
            proxy.set(Pass())
            old.settimeout(5)
            with pytest.raises(ConnectionResetError):
                old.recv(10)
        assert exchange(idle, b"after") == b"after"
    assert echo.heard == b"beforeafter"


def test_a_stall_delivers_in_the_end(echo: Echo) -> None:
    with Proxy(echo.port) as proxy, connected(proxy, seconds=0.2) as connection:
        proxy.set(Stall())
        connection.sendall(b"late")
        with pytest.raises(TimeoutError):
            connection.recv(10)
        assert not echo.heard
        proxy.set(Pass())
        connection.settimeout(5)
        assert connection.recv(10) == b"late"


def test_a_delay_holds_each_chunk(echo: Echo) -> None:
    with Proxy(echo.port) as proxy, connected(proxy, seconds=0.1) as connection:
        proxy.set(Delay(0.5))
        connection.sendall(b"slow")
        with pytest.raises(TimeoutError):
            connection.recv(10)
        connection.settimeout(10)
        assert connection.recv(10) == b"slow"
        assert proxy.hits == 2


def test_a_reset_meets_old_and_new_connections(echo: Echo) -> None:
    with Proxy(echo.port) as proxy, connected(proxy) as old:
        assert exchange(old, b"x") == b"x"
        proxy.set(Reset())
        with pytest.raises(ConnectionResetError):
            old.recv(10)
        with pytest.raises(ConnectionResetError), connected(proxy) as new:
            new.recv(10)
        assert proxy.met(seconds=5, hits=2)
        proxy.set(Pass())
        with connected(proxy) as new:
            assert exchange(new, b"y") == b"y"
            assert proxy.reset_connections() == 1
            with pytest.raises(ConnectionResetError):
                new.recv(10)


def test_a_refusal_comes_back_on_the_same_port(echo: Echo) -> None:
    with Proxy(echo.port) as proxy:
        port = proxy.port
        proxy.set(Refuse())
        with pytest.raises(ConnectionRefusedError), connected(proxy):
            pass
        proxy.set(Pass())
        with connected(proxy) as connection:
            assert exchange(connection, b"x") == b"x"
        assert proxy.port == port


def test_a_cut_ends_an_answer_in_its_middle(echo: Echo) -> None:
    with Proxy(echo.port) as proxy, connected(proxy) as connection:
        assert exchange(connection, b"whole") == b"whole"
        proxy.set(Cut(3))
        assert exchange(connection, b"halved") == b"hal"
        with connected(proxy) as another:
            assert exchange(another, b"who") == b"who"
            assert exchange(another, b"le") == b""


def test_an_upstream_that_is_gone_resets() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as gone:
        port = gone.getsockname()[1]
    with Proxy(port) as proxy, pytest.raises(ConnectionResetError), connected(proxy) as connection:
        connection.recv(10)


class Objects(BaseHTTPRequestHandler):
    """Keeps what is put."""

    protocol_version = "HTTP/1.1"
    bodies: ClassVar[list[bytes]] = []

    def do_PUT(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers["Content-Length"]))
        self.bodies.append(body)
        self.answer(b"")

    def do_GET(self) -> None:
        self.answer(b"-".join(self.bodies))

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(
        self,
        format: str,  # noqa: A002 - the base's name
        *args: object,
    ) -> None:
        pass


@pytest.fixture
def objects() -> Iterator[ThreadingHTTPServer]:
    Objects.bodies.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Objects)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join(10)
    server.server_close()


@contextmanager
def http(proxy: Proxy, *, seconds: float = 10) -> Iterator[HTTPConnection]:
    connection = HTTPConnection("127.0.0.1", proxy.port, timeout=seconds)
    yield connection
    connection.close()


def status(connection: HTTPConnection, method: str, body: bytes | list[bytes] | None = None) -> int:
    connection.request(method, "/object", body=body)
    response = connection.getresponse()
    response.read()
    return response.status


def test_some_requests_are_told_to_slow_down(objects: ThreadingHTTPServer) -> None:
    faults = RequestFaults()
    with Proxy(objects.server_port, requests=faults) as proxy, http(proxy) as connection:
        assert status(connection, "PUT", b"one") == 200
        faults.next(2, Verdict.SLOW_DOWN, writes)
        assert [status(connection, "PUT", b"lost"), status(connection, "GET")] == [503, 200]
        assert [status(connection, "PUT", b"lost"), status(connection, "PUT", b"two")] == [503, 200]
        assert status(connection, "PUT", [b"thr", b"ee" * 50000]) == 200
    assert Objects.bodies == [b"one", b"two", b"thr" + b"ee" * 50000]
    assert faults.met == 2


def test_a_share_of_requests_fails_by_seed(objects: ThreadingHTTPServer) -> None:
    faults = RequestFaults()
    with Proxy(objects.server_port, requests=faults) as proxy, http(proxy) as connection:
        faults.share(0.5, Verdict.SLOW_DOWN, seed=7)
        first = [status(connection, "GET") for _ in range(20)]
        faults.share(0.5, Verdict.SLOW_DOWN, seed=7)
        assert [status(connection, "GET") for _ in range(20)] == first
        assert set(first) == {200, 503}
        faults.clear()
        assert {status(connection, "GET") for _ in range(20)} == {200}


def test_a_lost_answer_was_done(objects: ThreadingHTTPServer) -> None:
    faults = RequestFaults()
    with Proxy(objects.server_port, requests=faults) as proxy, http(proxy) as connection:
        faults.next(1, Verdict.LOST)
        with pytest.raises(ConnectionResetError):
            status(connection, "PUT", b"done")
    assert Objects.bodies == [b"done"]


def test_a_silent_request_is_not_done_and_reset_in_the_end(objects: ThreadingHTTPServer) -> None:
    faults = RequestFaults()
    with Proxy(objects.server_port, requests=faults) as proxy:
        faults.next(1, Verdict.SILENCE)
        with http(proxy, seconds=0.2) as impatient, pytest.raises(TimeoutError):
            status(impatient, "PUT", b"never")
        faults.next(1, Verdict.SILENCE)
        with http(proxy) as patient:
            patient.request("PUT", "/object", body=b"never")
            wait_until(lambda: faults.met == 2, seconds=5, what="the request")
            faults.clear()
            with pytest.raises(ConnectionResetError):
                patient.getresponse()
    assert not Objects.bodies
