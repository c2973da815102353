"""`worker doctor` beside real services: what it says of sound ones, and of each that is not."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from tests.services import S3, Valkey, free_port
from tests.tiny_checkpoint import make_tiny_checkpoint

pytestmark = pytest.mark.slow

PASSWORD = "correct-horse"  # noqa: S105 - of a server that lives for one test


@dataclass(frozen=True)
class Diagnosis:
    """What one run of the doctor said."""

    status: int
    output: str

    def __getitem__(self, check: str) -> tuple[str, str]:
        """A check's status, and all that was said."""
        found = {each["check"]: each for each in json.loads(self.output)["checks"]}[check]
        return found["status"], f"{found['found']} -> {found['advice']}"

    def with_status(self, status: str) -> set[str]:
        """The checks that ended so."""
        return {each["check"] for each in json.loads(self.output)["checks"] if each["status"] == status}


Examine = Callable[..., Diagnosis]


@pytest.fixture
def examine(valkey: Valkey, tmp_path: Path) -> Examine:
    """The doctor with a sound server, store and model, but for what a test names."""
    sound = {
        "redis_url": valkey.url,
        "store_url": f"file://{tmp_path}/store",
        "model": make_tiny_checkpoint(tmp_path / "tiny"),
        "device_groups": f"cpu:{min(os.sched_getaffinity(0))}",
    }

    def examine(*options: str, **settings: object) -> Diagnosis:
        given = {**sound, **settings}
        done = subprocess.run(
            [sys.executable, "-m", "worker", "doctor", *(options or ("--json",))],
            env={**os.environ, **{f"LONGHAUL_{name.upper()}": str(value) for name, value in given.items()}},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.stderr == ""
        return Diagnosis(done.returncode, done.stdout)

    return examine


def test_all_is_well(examine: Examine, valkey: Valkey, tmp_path: Path) -> None:
    diagnosis = examine()
    assert (diagnosis.status, json.loads(diagnosis.output)["ok"]) == (0, True)
    assert (
        diagnosis.with_status("fail") | diagnosis.with_status("skip") | diagnosis.with_status("warn") == set()
    )
    assert "Valkey" in diagnosis["redis version"][1]
    assert "appendfsync everysec" in diagnosis["redis append-only file"][1]
    assert "longhaul:*" in diagnosis["redis rights"][1]
    assert "created once only" in diagnosis["store"][1]
    with valkey.client() as client:
        assert client.keys() == []
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []


def test_people_get_a_table(examine: Examine) -> None:
    diagnosis = examine("--groups", "cpu:1023")
    assert diagnosis.status == 1
    rows = diagnosis.output.splitlines()
    assert any(row.split()[:3] == ["redis", "eviction", "ok"] for row in rows)
    failed = next(number for number, row in enumerate(rows) if row.split()[:2] == ["devices", "fail"])
    assert "no CPU 1023" in rows[failed]
    assert "→ name others in LONGHAUL_DEVICE_GROUPS" in rows[failed + 1]


def test_a_server_that_forgets(examine: Examine, valkey: Valkey) -> None:
    with valkey.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("appendonly", "no")
    diagnosis = examine()
    assert diagnosis.status == 1
    assert diagnosis.with_status("fail") == {"redis eviction", "redis append-only file"}
    assert "set maxmemory-policy noeviction" in diagnosis["redis eviction"][1]
    assert "set appendonly yes" in diagnosis["redis append-only file"][1]


def test_a_server_that_is_nearly_full(examine: Examine, valkey: Valkey) -> None:
    with valkey.client() as client:
        client.set("much", b"x" * 2**25)
        client.config_set("maxmemory", 2**25 + 2**22)
    diagnosis = examine()
    assert diagnosis.status == 0
    assert diagnosis.with_status("warn") == {"redis memory"}
    assert "raise maxmemory" in diagnosis["redis memory"][1]


def test_a_file_that_is_not_flushed(examine: Examine, valkey: Valkey) -> None:
    with valkey.client() as client:
        client.config_set("appendfsync", "no")
    diagnosis = examine()
    assert diagnosis.status == 0
    assert diagnosis["redis append-only file"][0] == "warn"


def test_a_user_without_rights(examine: Examine, valkey: Valkey) -> None:
    with valkey.client() as client:
        client.acl_setuser("nobody", enabled=True, passwords=[f"+{PASSWORD}"])
    url = f"redis://nobody:{PASSWORD}@127.0.0.1:{valkey.port}/0"
    diagnosis = examine(redis_url=url)
    assert diagnosis.status == 1
    assert diagnosis.with_status("fail") == {"redis rights"}
    said = diagnosis["redis rights"][1]
    assert "SET, GET" in said
    assert "ACL SETUSER <user> ~longhaul ~longhaul:* +@connection" in said
    for check in ("redis version", "redis eviction", "redis clock"):
        assert diagnosis[check][0] == "warn"
    assert PASSWORD not in diagnosis.output


def test_a_user_with_the_rights_that_are_advised(examine: Examine, valkey: Valkey) -> None:
    with valkey.client() as client:
        rules = "on ~longhaul ~longhaul:* +@connection +@transaction +@scripting +@read +@write +time +info"
        client.execute_command("ACL", "SETUSER", "fleet", f">{PASSWORD}", *rules.split())
    url = f"redis://fleet:{PASSWORD}@127.0.0.1:{valkey.port}/0"
    status, said = examine(redis_url=url)["redis channel"]
    assert status == "warn"
    with valkey.client() as client:
        client.execute_command(*said.partition("allow it: ")[2].replace("<user>", "fleet").split())
    diagnosis = examine(redis_url=url)
    assert diagnosis.status == 0
    assert diagnosis["redis channel"] == ("ok", "longhaul:called_off -> ")
    assert diagnosis.with_status("warn") == {"redis append-only file"}  # CONFIG GET is not for such a user
    assert diagnosis["redis user"] == ("ok", "fleet -> ")
    other = examine(redis_url=url, redis_prefix="another")
    assert other.with_status("fail") == {"redis rights"}
    assert PASSWORD not in diagnosis.output + other.output


@pytest.mark.parametrize(
    ("rules", "refused"),
    [("-zadd", "ZADD"), ("-evalsha", "EVALSHA"), ("resetkeys ~longhaul:*", "EVALSHA"), ("-exec", "EXEC")],
)
def test_one_right_that_lacks_is_named(examine: Examine, valkey: Valkey, rules: str, refused: str) -> None:
    with valkey.client() as client:
        client.execute_command(
            "ACL", "SETUSER", "fleet", "on", f">{PASSWORD}", "allkeys", "allchannels", "+@all"
        )
        client.execute_command("ACL", "SETUSER", "fleet", *rules.split())
    diagnosis = examine(redis_url=f"redis://fleet:{PASSWORD}@127.0.0.1:{valkey.port}/0")
    assert diagnosis.with_status("fail") == {"redis rights"}
    assert refused in diagnosis["redis rights"][1]


def test_a_wrong_password(examine: Examine, valkey: Valkey) -> None:
    with valkey.client() as client:
        client.config_set("requirepass", PASSWORD)
    missing = examine()
    wrong = examine(redis_url=f"redis://:wrong-{PASSWORD}@127.0.0.1:{valkey.port}/0")
    for diagnosis in (missing, wrong):
        assert "redis" in diagnosis.with_status("fail")
        assert "user and password into LONGHAUL_REDIS_URL" in diagnosis["redis"][1]
        assert PASSWORD not in diagnosis.output
    right = examine(redis_url=f"redis://:{PASSWORD}@127.0.0.1:{valkey.port}/0")
    assert right.status == 0
    assert PASSWORD not in right.output


def test_redis_is_down(examine: Examine, valkey: Valkey) -> None:
    valkey.stop()
    diagnosis = examine()
    assert diagnosis.status == 1
    assert diagnosis.with_status("fail") == {"redis"}
    assert "start it, or correct LONGHAUL_REDIS_URL" in diagnosis["redis"][1]
    skipped = diagnosis.with_status("skip")
    assert skipped >= {"redis version", "redis eviction", "redis rights", "redis clock"}
    assert diagnosis["redis version"][1] == "not checked: redis first -> "
    assert diagnosis["store"][0] == "ok"


def test_a_url_that_can_not_be_read_is_not_shown(examine: Examine) -> None:
    diagnosis = examine(redis_url=f"redis://:{PASSWORD}/more@127.0.0.1:6379/0")
    assert "redis" in diagnosis.with_status("fail")
    assert "can not be read" in diagnosis["redis"][1]
    assert PASSWORD not in diagnosis.output


def test_a_replica(examine: Examine, valkey: Valkey) -> None:
    with valkey.client() as client:
        client.execute_command("REPLICAOF", "127.0.0.1", str(free_port()))
    diagnosis = examine()
    assert "name its primary" in diagnosis["redis role"][1]
    assert diagnosis.with_status("fail") == {"redis role", "redis rights"}


def test_a_store_that_can_not_be_written(examine: Examine, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    diagnosis = examine(store_url=f"file://{tmp_path}/file/store")
    assert diagnosis.status == 1
    assert diagnosis.with_status("fail") == {"store"}
    assert diagnosis.with_status("skip") == {"store latency", "store folder", "store clock"}


def test_an_s3_store(examine: Examine, s3: S3) -> None:
    given = {name.removeprefix("LONGHAUL_").lower(): value for name, value in s3.environment.items()}
    diagnosis = examine(store_url=s3.url("doctor"), **given)
    assert diagnosis.status == 0
    assert diagnosis["store"][0] == diagnosis["store tls"][0] == diagnosis["store clock"][0] == "ok"
    assert "create" in diagnosis["store latency"][1]
    given["s3_secret_access_key"] = wrong = f"not-{s3.secret_access_key}"
    refused = examine(store_url=s3.url("doctor"), **given)
    assert refused.with_status("fail") == {"store"}
    assert "LONGHAUL_S3_*" in refused["store"][1]
    assert s3.secret_access_key not in diagnosis.output + refused.output
    assert wrong not in refused.output


def test_model_files_that_lack(examine: Examine, tmp_path: Path) -> None:
    (tmp_path / "tiny" / "model.safetensors").unlink()
    (tmp_path / "tiny" / "tokenizer.json").unlink()
    diagnosis = examine()
    assert diagnosis.status == 1
    assert diagnosis.with_status("fail") == {"model weights", "tokenizer"}
    diagnosis = examine("--json", "--model", str(tmp_path))
    assert diagnosis.with_status("fail") == {"model"}
    assert diagnosis.with_status("skip") == {
        "model weights",
        "tokenizer",
        "generation config",
        "feature matrix",
    }


def test_a_port_in_use(examine: Examine) -> None:
    first = free_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first))
        taken.listen()
        diagnosis = examine(metrics_port=first)
        assert diagnosis.with_status("fail") == {"metrics ports"}
        assert f"127.0.0.1:{first} is in use" in diagnosis["metrics ports"][1]


def test_a_profile_with_a_bad_line(examine: Examine, tmp_path: Path) -> None:
    (tmp_path / "chip.env").write_text("A=1\nnonsense\n")
    diagnosis = examine("--json", "--groups", "npu:0", profile=tmp_path / "chip.env")
    assert "chip.env, line 2: 'nonsense'" in diagnosis["profile"][1]
    assert diagnosis["feature matrix"] == ("skip", "not checked: profile first -> ")


def test_the_doctor_leaves_a_full_server_as_it_was(examine: Examine, valkey: Valkey) -> None:
    with valkey.client() as client:
        client.set("x", "y" * 1000)
        client.config_set("maxmemory", "1")
        diagnosis = examine()
        assert diagnosis.with_status("fail") == {"redis rights"}
        assert "did not work" in diagnosis["redis rights"][1]
        client.config_set("maxmemory", "0")
        assert client.keys() == [b"x"]
        with pytest.raises(redis.ResponseError):
            client.execute_command("EXEC")
