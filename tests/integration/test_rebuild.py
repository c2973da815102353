"""`worker rebuild`: a Redis that lost everything, and a store that has it all."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.ledger import Claim
from jobs.records import JobKeys, JobState, ShardRef
from producer.client import Client
from producer.submission import Order
from tests.fleet import Place, wait_for_job
from tests.integration.fleet_of_one import FleetOfOne
from tests.services import S3, Valkey

LINES, SHARD_LINES = 40, 8


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, valkey: Valkey, tmp_path: Path) -> Place:
    more: dict[str, str] = {}
    store = None
    if request.param == "s3":
        server: S3 = request.getfixturevalue("s3")
        more = {key.removeprefix("LONGHAUL_").lower(): value for key, value in server.environment.items()}
        store = server.url(tmp_path.name)
    return Place.at(tmp_path, redis=valkey.url, store=store, model=tmp_path, model_name="echo", **more)


def submit(client: Client, folder: Path) -> str:
    path = folder / "input.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"text {number}"}) + "\n" for number in range(LINES)))
    return client.submit(Order(sources=(str(path),), model="echo")).spec.id


def rebuild(place: Place, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "worker", "rebuild", *arguments],
        env={**place.environment}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def work_some(place: Place, client: Client, job: str, *shards: int) -> None:
    spec = client.status(job).spec
    for shard in shards:
        FleetOfOne(settings=place.settings).work(spec, range(shard, shard + 1))


def test_a_job_goes_on_where_its_parts_end(place: Place, valkey: Valkey) -> None:
    with place.client() as client, valkey.client() as redis:
        job = submit(client, place.folder)
        work_some(place, client, job, 0, 3)
        before = client.status(job)
        redis.flushall()
        done = rebuild(place, "--all")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"{job} is in_progress again, 2 of 5 parts\n"
        again = client.status(job)
        assert (again.state, again.succeeded, again.committed_shards) == (JobState.IN_PROGRESS, 16, 2)
        assert again.completion_tokens == before.completion_tokens
        with place.worker("echo:0") as worker:
            end = wait_for_job(
                client.ledger, job, lambda status: status.state.final, seconds=60, what="the job's end"
            )
            assert {event["shard"] for event in worker.events("shard begun")} == {1, 2, 4}
        assert (end.state, end.succeeded) == (JobState.COMPLETED, LINES)
        texts = [
            json.loads(line)["response"]["body"]["choices"][0]["message"]["content"]
            for line in client.results(job)
        ]
        assert texts == [f"text {number}" for number in range(LINES)]


def test_jobs_that_ended_are_known_as_they_ended(place: Place, valkey: Valkey) -> None:
    with place.client() as client, valkey.client() as redis:
        whole = submit(client, place.folder)
        work_some(place, client, whole, *range(LINES // SHARD_LINES))
        cancelled, unfinished = submit(client, place.folder), submit(client, place.folder)
        client.cancel(cancelled)
        client.cancel(unfinished)
        with place.worker("echo:0"):
            wait_for_job(
                client.ledger, cancelled, lambda status: status.state.final, seconds=60, what="its end"
            )
        place.store.delete([JobKeys(unfinished).manifest])  # Redis was lost before it was written
        before = client.status(whole)
        redis.flushall()
        done = rebuild(place, "--all", "--json")
        states = {line["job"]: line["state"] for line in map(json.loads, done.stdout.splitlines())}
        assert states == {whole: "completed", cancelled: "cancelled", unfinished: "finalizing"}
        after = client.status(whole)
        assert (after.state, after.succeeded) == (before.state, before.succeeded)
        assert after.finished_at == pytest.approx(before.finished_at, abs=5)
        assert client.status(cancelled).state is JobState.CANCELLED


def test_what_redis_knows_is_left_alone(place: Place) -> None:
    with place.client() as client:
        job = submit(client, place.folder)
        client.ledger.dispatch("echo", 4)
        claim = client.ledger.claim(ShardRef(job, 0), "me", 60)
        assert isinstance(claim, Claim)
        done = rebuild(place, job)
        assert done.stdout == f"{job} is known already: left alone, 0 of 5 parts\n"
        assert client.ledger.renew(claim, 60) == ""


def test_errors_are_one_line(place: Place) -> None:
    for arguments, said in (
        (["nobody"], "holds no jobs/nobody/job.json (object_missing)"),
        (["../x"], "not a job id"),
        ([], "give the ids of jobs, or --all"),
    ):
        done = rebuild(place, *arguments)
        assert done.returncode in {1, 2}
        assert said in done.stderr
        assert "Traceback" not in done.stderr
