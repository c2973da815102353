"""What goes wrong around a worker, on real parts: each costs time, and never a line."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs.dialogue import Sampling
from jobs.records import JobKeys, JobState, JobStatus
from producer.client import Client
from producer.submission import Order
from tests.fleet import Place, Worker, wait_for_job
from tests.services import Valkey, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LINES = 16


@pytest.fixture
def place(valkey: Valkey, smollm2: Path, tmp_path: Path) -> Place:
    return Place.at(tmp_path, redis=valkey.url, model=smollm2, lease_seconds="30")


def submit(client: Client, folder: Path, lines: list[bytes] | None = None) -> str:
    """A job of answers that end one after another, or of these lines."""
    path = folder / "input.jsonl"
    prompts = [
        {"prompt": f"Count to {number}.", "max_tokens": 4 + 10 * (number % 8), "ignore_eos": True}
        for number in range(LINES)
    ]
    path.write_bytes(b"\n".join(lines or [json.dumps(prompt).encode() for prompt in prompts]) + b"\n")
    return client.submit(Order(sources=(str(path),), sampling=Sampling(temperature=0.0))).spec.id


def ended(client: Client, job_id: str) -> JobStatus:
    return wait_for_job(
        client.ledger, job_id, lambda status: status.state.final, seconds=300, what="the job's end"
    )


def begun(client: Client, job_id: str) -> JobStatus:
    return wait_for_job(
        client.ledger, job_id, lambda status: status.checkpointed > 0, seconds=120, what="first lines"
    )


def generated(worker: Worker) -> int:
    """Lines that the worker's engine was asked for in committed shards, once all are logged."""
    worker.wait_for("shard committed", seconds=20, count=LINES // 8)
    return sum(event["generated"] for event in worker.events("shard committed"))


def assert_all_succeeded(client: Client, job_id: str, status: JobStatus) -> None:
    assert status.state is JobState.COMPLETED
    assert (status.succeeded, status.failed) == (LINES, 0)
    output = [json.loads(line) for line in client.results(job_id)]
    assert [line["id"] for line in output] == [f"{job_id}-{number}" for number in range(1, LINES + 1)]


def test_redis_away_for_twenty_seconds(place: Place, valkey: Valkey) -> None:
    with place.client() as client, place.worker() as worker:
        worker.wait_for("worker ready")
        job_id = submit(client, place.folder)
        begun(client, job_id)
        valkey.stop()
        back = time.monotonic() + 20
        wait_until(lambda: time.monotonic() > back, seconds=30, what="twenty seconds to pass")
        valkey.start()
        assert_all_succeeded(client, job_id, ended(client, job_id))
        assert worker.events("waiting for a service")
        assert generated(worker) == LINES, "no line was generated again"


def test_an_engine_that_is_killed_comes_back_and_the_leases_stay(place: Place) -> None:
    with place.client() as client, place.worker() as worker:
        worker.wait_for("worker ready")
        job_id = submit(client, place.folder)
        begun(client, job_id)
        os.kill(worker.engine_pid, signal.SIGKILL)
        assert_all_succeeded(client, job_id, ended(client, job_id))
        assert worker.wait_for("engine lost")["reason"] == "was killed by SIGKILL"
        assert {event["epoch"] for event in worker.events("shard committed")} == {1}
        assert generated(worker) == LINES


def test_a_store_that_can_not_be_written_is_waited_for_and_named(place: Place) -> None:
    with place.client() as client, place.worker() as worker:
        worker.wait_for("worker ready")
        job_id = submit(client, place.folder)
        output = place.folder / "store" / JobKeys(job_id).part(0)
        output.parent.parent.mkdir(exist_ok=True)
        output.parent.write_text("a file where the parts' folder should be")
        status = wait_for_job(
            client.ledger, job_id, lambda status: status.problem is not None, seconds=120, what="the problem"
        )
        assert status.problem is not None
        assert "part-0000" in status.problem
        output.parent.unlink()
        assert_all_succeeded(client, job_id, ended(client, job_id))
        assert client.status(job_id).problem is None
        assert generated(worker) == LINES


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB where the store will be."""
    folder = tmp_path / "store"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "longhaul-test", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_waited_for_and_named(place: Place, small_disk: Path) -> None:
    with place.client() as client, place.worker() as worker:
        worker.wait_for("worker ready")
        job_id = submit(client, place.folder)
        begun(client, job_id)
        filler = small_disk / "filler"
        with pytest.raises(OSError, match="No space left"):
            fill(filler)
        status = wait_for_job(
            client.ledger, job_id, lambda status: status.problem is not None, seconds=120, what="the problem"
        )
        assert "No space left on device" in (status.problem or "")
        filler.unlink()
        assert_all_succeeded(client, job_id, ended(client, job_id))
        assert generated(worker) == LINES


def fill(path: Path) -> None:
    """Write until the disk refuses."""
    with path.open("wb", buffering=0) as file:
        for _ in range(1000):
            file.write(b"x" * 4096)


def test_sigterm_hands_back_what_the_grace_does_not_suffice_for(place: Place) -> None:
    hasty = Place({**place.environment, "LONGHAUL_DRAIN_SECONDS": "0"}, place.folder)
    with place.client() as client:
        with hasty.worker(name="first") as first:
            first.wait_for("worker ready")
            job_id = submit(client, place.folder)
            begun(client, job_id)
            first.process.send_signal(signal.SIGTERM)
            assert first.process.wait(60) == 0
            assert len(first.events("shard handed back")) == 2
        kept = client.status(job_id).checkpointed
        assert kept > 0
        with place.worker(name="second") as second:
            assert_all_succeeded(client, job_id, ended(client, job_id))
            assert sum(event["found"] for event in second.events("shard begun")) == kept
            assert {event["attempt"] for event in second.events("shard begun")} == {1}


def test_cancel_keeps_what_is_finished(place: Place) -> None:
    quick = Place({**place.environment, "LONGHAUL_LEASE_SECONDS": "1"}, place.folder)
    tokens = [3] + [5000] * (LINES - 1)  # all but the first go on for minutes
    lines = [
        json.dumps({"prompt": "Go on.", "max_tokens": count, "ignore_eos": True}).encode() for count in tokens
    ]
    with place.client() as client, quick.worker() as worker:
        worker.wait_for("worker ready")
        job_id = submit(client, place.folder, lines)
        begun(client, job_id)
        client.cancel(job_id)
        status = ended(client, job_id)
        output = [json.loads(line) for line in client.results(job_id)]
    assert status.state is JobState.CANCELLED
    assert [line["error"] and line["error"]["code"] for line in output] == [
        None,
        *["cancelled"] * (LINES - 1),
    ]
    assert (status.succeeded, status.failed) == (1, LINES - 1)


def test_bad_lines_come_out_as_errors_and_the_rest_is_done(place: Place) -> None:
    good = b'{"custom_id": "good", "prompt": "Say yes.", "max_tokens": 3}'
    lines = [
        b"not json",
        b"\xff\xfe",
        b"",
        b'{"messages": [{"role": "user", "content": 5}]}',
        b'{"messages": []}',
        b'{"messages": [{"role": "wizard", "content": "x"}]}',
        good,
        good,
        b'{"prompt": "x", "max_tokens": 0}',
        b'{"prompt": "' + b"long " * 9000 + b'"}',
        b'{"prompt": "' + b"x" * (9 * 1024 * 1024) + b'"}',
        b'{"custom_id": "last", "prompt": "Say no.", "max_tokens": 3}',
    ]
    with place.client() as client, place.worker() as worker:
        worker.wait_for("worker ready")
        job_id = submit(client, place.folder, lines)
        status = ended(client, job_id)
        output = [json.loads(line) for line in client.results(job_id)]
    assert [line["error"] and line["error"]["code"] for line in output] == [
        "invalid_json",
        "invalid_json",
        "invalid_json",
        "invalid_request",
        "invalid_request",
        "invalid_request",
        None,
        "duplicate_custom_id",
        "invalid_request",
        "context_length_exceeded",
        "line_too_large",
        None,
    ]
    assert (status.state, status.succeeded, status.failed) == (JobState.COMPLETED, 2, 10)


def test_a_job_of_bad_lines_alone_has_failed(place: Place) -> None:
    with place.client() as client, place.worker() as worker:
        worker.wait_for("worker ready")
        job_id = submit(client, place.folder, [b"{", b"[]"])
        status = ended(client, job_id)
    assert (status.state, status.succeeded, status.failed) == (JobState.FAILED, 0, 2)


def break_config(model: Path) -> None:
    (model / "config.json").unlink()


def break_weights(model: Path) -> None:
    weights = next(model.glob("*.safetensors"))
    data = weights.read_bytes()[:100_000]
    weights.unlink()
    weights.write_bytes(data)


def break_architecture(model: Path) -> None:
    path = model / "config.json"
    config = json.loads(path.read_text())
    path.unlink()
    path.write_text(json.dumps({**config, "architectures": ["MysteryForCausalLM"]}))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (break_config, "config.json"),
        (break_weights, "safetensors"),
        (break_architecture, "MysteryForCausalLM"),
    ],
)
def test_a_model_that_can_not_be_served_ends_the_worker_with_the_reason(
    place: Place, smollm2: Path, damage: Callable[[Path], None], reason: str
) -> None:
    broken = place.folder / "broken"
    shutil.copytree(smollm2, broken, copy_function=os.link)
    damage(broken)
    served = Place({**place.environment, "LONGHAUL_MODEL": str(broken)}, place.folder)
    with served.worker() as worker:
        event = worker.wait_for("worker can not start", seconds=60)
        assert reason in event["reason"]
        assert worker.process.wait(30) == 1
