"""Groups of different devices serve one queue: each line comes once, and receipts say which group made it.

The accelerators are simulated, as in tests/npu and tests/cuda, in float32: so texts can be compared exactly.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from jobs.dialogue import Sampling
from jobs.records import JobKeys, JobState
from producer.client import Client
from producer.submission import Order
from tests.fleet import Place, Worker, wait_for_job
from tests.npu import environment
from tests.services import Valkey
from tests.tiny_checkpoint import make_tiny_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = environment.ROOT
LINES, SHARD_LINES = 24, 2


def simulated_npu() -> dict[str, str]:
    try:
        return {**environment.variables("910B"), "SIM_NPU_FLOAT32": "1"}
    except environment.Unavailable as error:
        pytest.skip(f"no simulated NPU: {error}")


def simulated_gpu() -> dict[str, str]:
    """Triton is not among the environment's packages, see the Makefile."""
    beside = Path(sys.prefix) / "triton"
    if find_spec("triton") is None and not (beside / "triton").is_dir():
        pytest.skip("no Triton: `make test-cuda` gets it")
    path = map(str, (ROOT, ROOT / "tests" / "cuda" / "on_ranks", beside))
    return {"PYTHONPATH": os.pathsep.join(path)}


SIMULATED: dict[str, Callable[[], dict[str, str]]] = {"npu:0": simulated_npu, "cuda:0": simulated_gpu}


@pytest.fixture
def place(valkey: Valkey, tmp_path: Path) -> Place:
    """One line at a time is done by each worker; none is taken for dead while it has to wait."""
    return Place.at(
        tmp_path,
        redis=valkey.url,
        model=make_tiny_checkpoint(tmp_path / "tiny", head_dim=64),
        dtype="float32",
        shard_lines=str(SHARD_LINES),
        shards_in_flight="1",
        lease_seconds="120",
        kv_cache_bytes=str(2**24),
    )


def submit(client: Client, folder: Path) -> str:
    path = folder / "lines.jsonl"
    with path.open("w") as file:
        for number in range(1, LINES + 1):
            turn = {"role": "user", "content": f"Tell of {number} sheep."}
            line = {"custom_id": f"d{number}", "messages": [turn], "max_tokens": 3 + number % 4}
            file.write(json.dumps(line) + "\n")
    return client.submit(Order(sources=(str(path),), sampling=Sampling(temperature=0.0))).spec.id


@contextmanager
def standing_still(worker: Worker) -> Iterator[None]:
    """Its process takes no shard and ends none meanwhile."""
    process = psutil.Process(worker.wait_for("worker process started")["pid"])
    process.suspend()
    try:
        yield
    finally:
        process.resume()


def finish(client: Client, job_id: str) -> None:
    status = wait_for_job(
        client.ledger, job_id, lambda job: job.state.final, seconds=300, what="the job's end"
    )
    assert (status.state, status.succeeded) == (JobState.COMPLETED, LINES)


def texts(client: Client, job_id: str) -> list[str]:
    """The answers in the order of the lines, each there once."""
    output = [json.loads(line) for line in client.results(job_id)]
    assert [line["custom_id"] for line in output] == [f"d{number}" for number in range(1, LINES + 1)]
    return [line["response"]["body"]["choices"][0]["message"]["content"] for line in output]


def committed(worker: Worker, group: str, job_id: str) -> dict[int, tuple[str, str]]:
    """The shards that the worker's own log says it committed, each with group and worker."""
    ours = [event for event in worker.events("shard committed") if event["job"] == job_id]
    return {event["shard"]: (group, worker.name) for event in ours}


@pytest.mark.parametrize("group", SIMULATED)
def test_two_kinds_of_devices_serve_one_job(place: Place, group: str) -> None:
    accelerated = replace(place, environment={**place.environment, **SIMULATED[group]()})
    with (
        place.client() as client,
        place.worker("cpu:0", "cpu") as cpu,
        accelerated.worker(group, "accelerator") as accelerator,
    ):
        cpu.wait_for("worker ready")
        accelerator.wait_for("worker ready")
        with standing_still(accelerator):
            alone = submit(client, place.folder)
            finish(client, alone)
        done = len(cpu.events("shard committed"))
        with ExitStack() as until_the_cpu_had_its_turn:
            with standing_still(cpu):
                mixed = submit(client, place.folder)
                accelerator.wait_for("shard committed")
                until_the_cpu_had_its_turn.enter_context(standing_still(accelerator))
            cpu.wait_for("shard committed", count=done + 1)
        finish(client, mixed)
        assert texts(client, mixed) == texts(client, alone)
        parts = json.loads(place.store.get(JobKeys(mixed).manifest))["parts"]
        written = {part["shard"]: (part["group"], part["worker"]) for part in parts}
        assert [part["shard"] for part in parts] == list(range(LINES // SHARD_LINES))
        assert written == {**committed(cpu, "cpu:0", mixed), **committed(accelerator, group, mixed)}
        assert {name for name, _ in written.values()} == {"cpu:0", group}
        assert len(set(texts(client, mixed))) > 1
