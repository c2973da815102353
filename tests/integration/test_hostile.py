"""Strangers at Redis: messages that are none, rights that are few, and a wire that is encrypted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import redis.exceptions as redis_errors

from producer.submission import Order
from tests.fleet import Place, wait_for_job
from tests.messages import hint, message
from tests.services import Valkey, wait_until
from tests.tls import tls_in_front_of

pytestmark = pytest.mark.slow

#: As docs/how-to/secure-a-fleet.md gives them. The scripts name the bare prefix as their key.
ACL_RIGHTS = (
    "~longhaul ~longhaul:* resetchannels &longhaul:called_off -@all +@connection +@transaction +@scripting "
    "+@read +@write +time +publish +subscribe +unsubscribe"
)
QUEUE = "longhaul:queue:echo"
HOSTILE = [
    b"\xff\xfe not json",
    b"[1, 2]",
    b"null",
    b"{}",
    b"[" * 100_000,
    json.dumps({"body": "x", "headers": {}}).encode(),
    json.dumps(message(b"\x80\x04.", **{"content-type": "application/x-python-serialize"})).encode(),
    json.dumps(message({"task": "os.system"})).encode(),
    json.dumps(message(hint(job="../../etc", shard=1))).encode(),
    json.dumps(message(hint(job="nobody", shard=1))).encode(),
]


@pytest.fixture
def place(valkey: Valkey, tmp_path: Path) -> Place:
    return Place.at(tmp_path, redis=valkey.url, model=tmp_path, model_name="echo")


def submit(place: Place, count: int = 20) -> str:
    path = place.folder / "input.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"text {number}"}) + "\n" for number in range(count)))
    with place.client() as client:
        return client.submit(Order(sources=(str(path),), model="echo")).spec.id


def completed(place: Place, job: str) -> bool:
    with place.client() as client:
        status = wait_for_job(
            client.ledger, job, lambda status: status.state.final, seconds=60, what="the job's end"
        )
        return status.succeeded == status.spec.lines


def test_redis_over_tls_with_our_own_authority(place: Place, valkey: Valkey) -> None:
    with tls_in_front_of(valkey.port, place.folder) as tls:
        secured = {
            "LONGHAUL_REDIS_URL": f"rediss://localhost:{tls.port}/0",
            "LONGHAUL_REDIS_CA_FILE": str(tls.ca_file),
        }
        encrypted = Place({**place.environment, **secured}, place.folder)
        with encrypted.worker("echo:0") as worker:
            worker.wait_for("worker ready")
            assert completed(encrypted, submit(encrypted))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"LONGHAUL_REDIS_CA_FILE": ""}, "certificate verify failed"),
        ({"LONGHAUL_REDIS_URL": "rediss://127.0.0.1:{port}/0"}, "certificate verify failed"),
        ({"LONGHAUL_REDIS_CA_FILE": "/nowhere/ca.pem"}, "/nowhere/ca.pem: no such file"),
    ],
)
def test_a_certificate_that_is_not_the_servers_is_refused(
    place: Place, valkey: Valkey, changed: dict[str, str], said: str
) -> None:
    """Another authority's, or another host's; the producer says so in one line."""
    with tls_in_front_of(valkey.port, place.folder) as tls:
        secured = {
            "LONGHAUL_REDIS_URL": f"rediss://localhost:{tls.port}/0",
            "LONGHAUL_REDIS_CA_FILE": str(tls.ca_file),
            **{name: value.format(port=tls.port) for name, value in changed.items()},
        }
        done = subprocess.run(
            [sys.executable, "-m", "producer", "list"],
            env={**os.environ, **place.environment, **secured}, capture_output=True, text=True, check=False,
            timeout=60,
        )  # fmt: skip
    assert done.returncode == 1
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_user_with_the_documented_rights_and_no_more_is_enough(place: Place, valkey: Valkey) -> None:
    with valkey.client() as redis:
        redis.execute_command("ACL", "SETUSER", "fleet", "on", ">secret", *ACL_RIGHTS.split())
        redis.set("another", "untouchable")
    url = f"redis://fleet:secret@127.0.0.1:{valkey.port}/0"
    limited = Place({**place.environment, "LONGHAUL_REDIS_URL": url}, place.folder)
    with limited.worker("echo:0") as worker:
        worker.wait_for("worker ready")
        assert completed(limited, submit(limited))
        assert "NOPERM" not in worker.log.read_text()
    with limited.client() as client, pytest.raises(redis_errors.NoPermissionError):
        client.ledger._redis.get("another")


def test_what_is_no_hint_is_dropped_and_the_worker_goes_on(place: Place, valkey: Valkey) -> None:
    with place.worker("echo:0") as worker, valkey.client() as redis:
        worker.wait_for("worker ready")
        redis.lpush(QUEUE, *HOSTILE)
        # Taken, not done, and older than the visibility timeout: Celery gives such a message back.
        redis.hset("longhaul:unacked", "tag", b"not json")
        redis.zadd("longhaul:unacked_index", {"tag": 0})
        wait_until(lambda: redis.llen(QUEUE) == 0, seconds=30, what="the queue to be emptied")
        assert completed(place, submit(place))
        wait_until(
            lambda: not redis.exists("longhaul:unacked", "longhaul:unacked_index"),
            seconds=30,
            what="what can not be given back to be dropped",
        )
        assert len(worker.events("worker ready")) == 1, "it was never started again"
        dropped = worker.events("message dropped: it is no hint")
        assert len(dropped) + len(worker.events("message dropped: it is not JSON")) == len(HOSTILE) - 1
        log = worker.log.read_text()
    assert "Traceback" not in log
    assert "text 1" not in log, "what dialogues say stays out of logs"
