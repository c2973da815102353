"""The clock that tests move: the wall clock of the processes that were given it, and nothing else."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.chaos.clock import Clock, build, compiler
from tests.services import Valkey, wait_until

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C compiler here to make the clock with")

HOUR = 3600.0

TELL = """
import datetime, sys, time
for line in sys.stdin:
    print(time.time(), datetime.datetime.now().timestamp(), time.monotonic(), flush=True)
"""


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(build(tmp_path), tmp_path / "clock")


def test_a_running_process_sees_the_wall_clock_jump_and_no_other(clock: Clock) -> None:
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", TELL],
        env=clock.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        for shift in (0.0, HOUR, -HOUR, 0.0):
            clock.set(shift)
            process.stdin.write("now\n")
            process.stdin.flush()
            told, dated, monotonic = map(float, process.stdout.readline().split())
            for value, true in ((told - shift, time.time()), (dated - shift, time.time())):
                assert abs(value - true) < HOUR / 60
            assert abs(monotonic - time.monotonic()) < HOUR / 60
        process.stdin.close()
    assert process.returncode == 0


def test_a_running_valkey_sees_it_too(clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Valkey(folder=tmp_path)
    with monkeypatch.context() as patched:
        for name, value in clock.environment.items():
            patched.setenv(name, value)
        server.start()
    try:
        with server.client() as client:
            client.set("key", "value", px=60_000)

            def shows(shift: float) -> bool:  # the server looks at the clock once in a millisecond
                return bool(abs(client.time()[0] - time.time() - shift) < HOUR / 60)

            clock.set(-HOUR)
            wait_until(lambda: shows(-HOUR), seconds=5, what="the server to notice")
            assert client.get("key") == b"value"
            clock.set(HOUR)
            wait_until(lambda: shows(HOUR), seconds=5, what="the server to notice")
            assert client.get("key") is None
    finally:
        server.stop()
