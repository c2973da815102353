"""The whole way of a job with real parts: Valkey, an S3 server, worker processes, the small real model."""

import hashlib
import json
from pathlib import Path

import pytest

from jobs.dialogue import Sampling
from jobs.ledger import Ledger
from jobs.records import JobKeys, JobState, ShardRef
from jobs.storage import Store
from producer.client import Client
from producer.submission import Order
from tests.fleet import Event, Place, Worker, wait_for_job
from tests.services import S3, Valkey, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LINES, SHARD_LINES = 32, 8


@pytest.fixture
def place(valkey: Valkey, s3: S3, smollm2: Path, tmp_path: Path) -> Place:
    access = {key.removeprefix("LONGHAUL_").lower(): value for key, value in s3.environment.items()}
    return Place.at(tmp_path, redis=valkey.url, store=s3.url(tmp_path.name), model=smollm2, **access)


def write_input(path: Path) -> None:
    """Dialogues whose answers end one after another, so that a kill always finds some done and some not."""
    with path.open("w") as file:
        for number in range(1, LINES + 1):
            line = {
                "custom_id": f"d{number}",
                "messages": [{"role": "user", "content": f"Tell a story about {number} sheep."}],
                "max_tokens": 4 + 12 * (number % SHARD_LINES),
                "ignore_eos": True,
            }
            file.write(json.dumps(line) + "\n")


def submit(client: Client, path: Path) -> str:
    return client.submit(Order(sources=(str(path),), sampling=Sampling(temperature=0.0))).spec.id


def assert_exactly_once(client: Client, store: Store, job_id: str) -> list[dict[str, object]]:
    """Every line once, in order, as the manifest counts them."""
    output = [json.loads(line) for line in client.results(job_id)]
    assert [line["custom_id"] for line in output] == [f"d{number}" for number in range(1, LINES + 1)]
    assert len({line["id"] for line in output}) == LINES
    assert all(line["error"] is None for line in output)
    for number, line in enumerate(output, start=1):
        assert line["response"]["body"]["usage"]["completion_tokens"] == 4 + 12 * (number % SHARD_LINES)
    keys = JobKeys(job_id)
    manifest = json.loads(store.get(keys.manifest))
    totals = manifest["totals"]
    assert (totals["lines"], totals["succeeded"], totals["failed"], totals["not_run"]) == (LINES, LINES, 0, 0)
    assert [part["shard"] for part in manifest["parts"]] == list(range(LINES // SHARD_LINES))
    for part in manifest["parts"]:
        data = store.get(keys.part(part["shard"]))
        assert part["sha256"] == hashlib.sha256(data).hexdigest()
    assert store.size(keys.success) == 0
    return output


def test_a_worker_killed_half_way_loses_nothing_and_repeats_nothing(place: Place, valkey: Valkey) -> None:
    path = place.folder / "input.jsonl"
    write_input(path)
    with (
        place.client() as client,
        place.worker("cpu:0", "first") as first,
        place.worker("cpu:1", "second") as second,
    ):
        first.wait_for("worker ready")
        second.wait_for("worker ready")
        job_id = submit(client, path)
        shard = wait_for_a_shard_half_done(client.ledger, valkey, job_id, first.name)
        first.sigkill()
        kept = len(client.ledger.checkpoints(shard))
        status = wait_for_job(
            client.ledger, job_id, lambda status: status.state.final, seconds=300, what="the job's end"
        )
        wait_until(
            lambda: (shard.shard, 2) in by_epoch(second, "shard committed"),
            seconds=20,
            what="the log to follow",
        )
        begun, committed = by_epoch(second, "shard begun"), by_epoch(second, "shard committed")
        assert status.state is JobState.COMPLETED
        assert (status.succeeded, status.failed, status.checkpointed) == (LINES, 0, 0)
        assert_exactly_once(client, place.store, job_id)
    # The survivor took the shard over under the next epoch and asked its engine for the missing lines alone.
    assert 0 < kept < SHARD_LINES
    assert begun[shard.shard, 2]["found"] == kept
    assert committed[shard.shard, 2]["generated"] == SHARD_LINES - kept
    assert nothing_left_behind(valkey)


def by_epoch(worker: Worker, name: str) -> dict[tuple[int, int], Event]:
    """A worker's log entries of one kind by shard and epoch."""
    return {(event["shard"], event["epoch"]): event for event in worker.events(name)}


def wait_for_a_shard_half_done(ledger: Ledger, valkey: Valkey, job_id: str, owner: str) -> ShardRef:
    """A shard of this worker with some of its lines checkpointed, but not all."""
    found: list[ShardRef] = []

    def look() -> bool:
        for number in range(LINES // SHARD_LINES):
            ref = ShardRef(job_id, number)
            holder = valkey.client().hget(f"longhaul:shard:{ref}", "owner") or b""
            if holder.decode().startswith(owner) and 0 < len(ledger.checkpoints(ref)) < SHARD_LINES - 2:
                found.append(ref)
        return bool(found)

    wait_until(look, seconds=120, what=f"a shard of {owner} to be half done")
    return found[0]


def nothing_left_behind(valkey: Valkey) -> bool:
    """No lease, no due or open shard, no checkpoint: only the job, the workers and the broker's own."""
    keys = {key.decode() for key in valkey.client().keys("longhaul:*")}
    ours = {
        key for key in keys if not key.startswith(("longhaul:queue:", "longhaul:_kombu", "longhaul:unacked"))
    }
    lasting = {"job", "jobs", "models", "workers", "reconciler"}  # the last one only until it expires
    left = {key for key in ours if key.split(":")[1] not in lasting}
    assert not left, left
    return True
