"""Children end when they are told to, when they will not, and when we die."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import redis

from producer.embedded import embedded_valkey
from producer.processes import Child, last_words
from tests.services import wait_until

STUBBORN = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(sys.stdin.read(), flush=True)
time.sleep(600)
"""


def child(tmp_path: Path, code: str, stdin: bytes = b"") -> Child:
    log = tmp_path / "log"
    return Child("child", [sys.executable, "-c", code], log=log, environment={"WORD": "w"}, stdin=stdin)


def said(path: Path, what: str) -> None:
    wait_until(lambda: what in path.read_text(), seconds=20, what=what)


def test_a_child_gets_its_input_and_its_environment(tmp_path: Path) -> None:
    one = child(tmp_path, "import os, sys; print(sys.stdin.read() + os.environ['WORD'])", b"in")
    said(tmp_path / "log", "inw")
    one.stop(10)
    assert not one.alive


def test_a_child_that_will_not_end_is_killed(tmp_path: Path) -> None:
    one = child(tmp_path, STUBBORN, b"ready")
    said(tmp_path / "log", "ready")
    one.stop(0.1)
    assert not one.alive
    one.stop(0.1)


def test_death_is_told_with_the_last_words(tmp_path: Path) -> None:
    one = child(tmp_path, "import sys; print('first'); sys.exit('the last words')")
    wait_until(lambda: not one.alive, seconds=20, what="the end")
    assert str(one.death()) == "the child ended with status 1: the last words"
    assert str(tmp_path / "log") in one.death().advice


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("", "it said nothing"),
        ("a\n  b  \n\n", "b"),
        ('{"event":"e","reason":"why"}\n{"event":"ended","status":78}\nnoise\n', "why"),
        ('{"reason":5}\n[1]\n', "[1]"),
        ("x" * 1000, "x" * 500),
    ],
)
def test_last_words(tmp_path: Path, log: str, words: str) -> None:
    (tmp_path / "log").write_text(log)
    assert last_words(tmp_path / "log") == words


def test_a_child_does_not_outlive_us(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from producer.processes import Child\n"
        "grandchild = 'import os, time; print(os.getpid(), flush=True); time.sleep(600)'\n"
        "Child('c', [sys.executable, '-c', grandchild], log=Path(sys.argv[1]), environment={})\n"
        "sys.stdin.read()"
    )
    log = tmp_path / "log"
    us = subprocess.Popen([sys.executable, "-c", code, str(log)], stdin=subprocess.PIPE)
    wait_until(lambda: log.exists() and log.read_text().strip().isdigit(), seconds=20, what="the child")
    pid = int(log.read_text())
    us.send_signal(signal.SIGKILL)
    us.communicate()
    wait_until(lambda: not running(pid), seconds=20, what="the child's end")


def running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_an_embedded_valkey_is_ours_alone_and_ends(tmp_path: Path) -> None:
    with embedded_valkey(tmp_path) as url:
        client = redis.Redis.from_url(url)
        assert client.ping()
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        with pytest.raises(redis.AuthenticationError):
            redis.Redis.from_url(f"redis://{url.rpartition('@')[2]}").ping()
    with pytest.raises(redis.ConnectionError):
        client.ping()
