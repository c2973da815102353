"""The test services are real: they keep what they acknowledged, refuse what they must, and leave nothing."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import obstore
import psutil
import pytest
import redis
from obstore.exceptions import AlreadyExistsError, PermissionDeniedError

from tests.services import S3, Valkey, valkey_server, wait_until

ORPHAN = """
import sys, time
from pathlib import Path
from tests.services import Valkey
server = Valkey(folder=Path(sys.argv[1]))
server.start()
print(server.process.pid, flush=True)
time.sleep(600)
"""


def test_valkey_keeps_acknowledged_writes_over_sigkill(valkey: Valkey) -> None:
    port = valkey.port
    with valkey.client() as client:
        for number in range(100):
            client.rpush("numbers", number)
    valkey.kill()
    with valkey.client() as client, pytest.raises(redis.ConnectionError):
        client.ping()
    valkey.start()
    with valkey.client() as client:
        assert [int(item) for item in client.lrange("numbers", 0, -1)] == list(range(100))
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("appendonly") == {"appendonly": "yes"}
    assert valkey.port == port


def test_valkey_servers_stand_beside_each_other(valkey: Valkey, tmp_path: Path) -> None:
    with valkey_server(tmp_path / "other") as other, valkey.client() as here, other.client() as there:
        here.set("name", "here")
        assert other.port != valkey.port
        assert there.get("name") is None


def test_s3_puts_gets_and_refuses_a_second_create(s3: S3) -> None:
    store = s3.store("test-services")
    obstore.put(store, "object", b"first", mode="create")
    with pytest.raises(AlreadyExistsError):
        obstore.put(store, "object", b"second", mode="create")
    assert obstore.get(store, "object").bytes().to_bytes() == b"first"
    assert obstore.get_range(store, "object", start=1, length=3).to_bytes() == b"irs"


def test_s3_refuses_a_wrong_key(s3: S3) -> None:
    stranger = dataclasses.replace(s3, access_key_id="stranger")
    with pytest.raises(PermissionDeniedError):
        obstore.put(stranger.store("test-services"), "stranger", b"x")


def test_a_service_does_not_outlive_a_killed_test_process(tmp_path: Path) -> None:
    tests = subprocess.Popen(
        [sys.executable, "-c", ORPHAN, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert tests.stdout is not None
    with tests.stdout as out:
        server = psutil.Process(int(out.readline()))
    assert server.name().startswith("valkey")
    os.kill(tests.pid, signal.SIGKILL)
    tests.wait()
    wait_until(
        lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE, seconds=10, what="end"
    )
