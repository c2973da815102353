"""The commit protocol step by step: a station in this process, with a real ledger, store and tiny engine."""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from jobs.dialogue import Sampling
from jobs.ledger import Claim, Ledger
from jobs.records import JobKeys, JobState, Receipt, ShardRef
from jobs.storage import Store
from model.chat import Chat
from producer.client import Client
from producer.submission import Order
from tests.fleet import Place
from tests.services import Valkey
from tests.tiny_checkpoint import make_tiny_checkpoint
from worker.engine_host import EngineHost
from worker.generation import Model
from worker.groups import parse_groups
from worker.leases import LeaseKeeper
from worker.manifest import finalize
from worker.sampling import model_sampling
from worker.shard import Station, work

LINES = 4
(GROUP,) = parse_groups("cpu:0")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = make_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "model")
    place = Place.at(path, redis="redis://127.0.0.1:1", store="file://unused", model=path)
    engine = EngineHost.open(GROUP, path, place.settings)
    ready = engine.start()
    yield Model(
        name="tiny",
        engine=engine,
        chat=Chat.load(path),
        max_model_len=ready.max_model_len,
        defaults=model_sampling(path),
        versions=ready.versions,
    )
    engine.close()


@pytest.fixture
def place(valkey: Valkey, tmp_path: Path) -> Place:
    return Place.at(
        tmp_path,
        redis=valkey.url,
        store=f"file://{tmp_path}/store",
        model=tmp_path,
        model_name="tiny",
        shard_lines=str(LINES),
        max_attempts="2",
    )


@pytest.fixture
def station(place: Place, model: Model) -> Iterator[Station]:
    ledger = Ledger.open(place.settings)
    leases = LeaseKeeper(ledger, place.settings.lease_seconds)
    leases.start()
    yield Station(
        worker="here",
        group=GROUP,
        settings=place.settings,
        store=place.store,
        ledger=ledger,
        leases=leases,
        model=model,
        dispatch=lambda: None,
        hand_back=threading.Event(),
    )
    leases.close()
    ledger.close()


@pytest.fixture
def ref(place: Place) -> Iterator[ShardRef]:
    """The one shard of a job of four lines, whose third is unusable."""
    path = place.folder / "input.jsonl"
    lines = ['{"prompt": "a", "max_tokens": 3, "ignore_eos": true}'] * LINES
    lines[2] = "no JSON"
    path.write_text("\n".join(lines) + "\n")
    with place.client() as client:
        job_id = submitted(client, path)
        yield ShardRef(job_id, 0)


def submitted(client: Client, path: Path) -> str:
    return client.submit(Order(sources=(str(path),))).spec.id


def part_of(store: Store, ref: ShardRef) -> list[dict[str, object]]:
    return [json.loads(line) for line in store.get(JobKeys(ref.job).part(ref.shard)).splitlines()]


def receipt_of(store: Store, ref: ShardRef) -> Receipt:
    return msgspec.json.decode(store.get(JobKeys(ref.job).receipt(ref.shard)), type=Receipt)


def take(station: Station, ref: ShardRef, seconds: float) -> Claim:
    claim = station.ledger.claim(ref, "another", seconds)
    assert isinstance(claim, Claim)
    return claim


def test_a_shard_is_generated_committed_and_counted(station: Station, ref: ShardRef) -> None:
    asked = station.model.engine.requests
    work(station, ref)
    lines = part_of(station.store, ref)
    assert [bool(line["error"]) for line in lines] == [False, False, True, False]
    assert station.model.engine.requests - asked == 3
    receipt = receipt_of(station.store, ref)
    assert (receipt.succeeded, receipt.failed, receipt.completion_tokens, receipt.worker) == (3, 1, 9, "here")
    assert receipt.device_seconds > 0
    assert station.ledger.status(ref.job).state is JobState.COMPLETED


def test_a_line_a_job_and_the_engine_mean_the_same_sampling(station: Station, place: Place) -> None:
    """Under the job's penalty no token comes twice; a line may switch it off, or ask for what can not be."""
    off = {"repetition_penalty": 1, "min_tokens": 0}
    own: list[dict[str, object]] = [{}, off, {"min_tokens": 13}, {"temperature": 1, "min_p": 1}]
    path = place.folder / "penalties.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": "a", "logprobs": True, **options}) + "\n" for options in own)
    )
    sampling = Sampling(max_tokens=12, min_tokens=12, repetition_penalty=1e6, temperature=0)
    with place.client() as client:
        job = client.submit(Order(sources=(str(path),), sampling=sampling)).spec.id
    work(station, ShardRef(job, 0))
    penalized, plain, refused, narrow = part_of(station.store, ShardRef(job, 0))
    first, second, third = (
        [token["bytes"] for token in line["response"]["body"]["choices"][0]["logprobs"]["content"]]  # type: ignore[index]
        for line in (penalized, plain, narrow)
    )
    assert len(first) == 12
    shown = [bytes(token).decode() for token in first if bytes(token).decode() != "\ufffd"]
    assert len(set(shown)) == len(shown) > 0
    assert second != first
    assert third == first, "min_p of 1 leaves the likeliest token alone"
    assert refused["error"] == {
        "code": "invalid_request",
        "message": "min_tokens 13 is over max_tokens 12",
    }


def test_a_second_hint_for_a_done_shard_does_nothing(station: Station, ref: ShardRef) -> None:
    work(station, ref)
    asked, before = station.model.engine.requests, station.store.get(JobKeys(ref.job).part(0))
    work(station, ref)
    assert station.model.engine.requests == asked
    assert station.store.get(JobKeys(ref.job).part(0)) == before
    assert station.ledger.status(ref.job).succeeded == 3


def test_only_missing_lines_are_generated(station: Station, ref: ShardRef) -> None:
    dead = take(station, ref, seconds=0)
    kept = b'{"id":"x","custom_id":null,"response":null,"error":{"code":"engine_error","message":"kept"}}'
    station.ledger.checkpoint(dead, {2: kept})
    asked = station.model.engine.requests
    work(station, ref)
    assert station.model.engine.requests - asked == 2
    assert part_of(station.store, ref)[1] == json.loads(kept)


def test_a_part_whose_writer_died_before_it_was_counted_is_counted_not_written_again(
    station: Station, ref: ShardRef
) -> None:
    take(station, ref, seconds=0)
    line = b'{"id":"x","custom_id":null,"response":null,"error":{"code":"engine_error","message":"first"}}\n'
    assert station.store.create(JobKeys(ref.job).part(0), line * LINES)
    asked = station.model.engine.requests
    work(station, ref)
    assert station.model.engine.requests == asked
    assert len(part_of(station.store, ref)) == LINES
    assert receipt_of(station.store, ref).worker is None
    status = station.ledger.status(ref.job)
    assert (status.state, status.succeeded, status.failed) == (JobState.FAILED, 0, LINES)


def test_a_part_that_appears_meanwhile_stands(
    station: Station, ref: ShardRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another writer was between its last look at its lease and its write when we took over."""
    key = JobKeys(ref.job).part(0)
    line = b'{"id":"x","custom_id":null,"response":null,"error":{"code":"engine_error","message":"first"}}\n'
    create = Store.create

    def late(store: Store, at: str, data: bytes) -> bool:
        if at == key:
            create(store, key, line * LINES)
        return create(store, at, data)

    monkeypatch.setattr(Store, "create", late)
    work(station, ref)
    assert station.store.get(key) == line * LINES
    assert station.ledger.status(ref.job).failed == LINES


def test_who_lost_the_lease_writes_nothing(
    station: Station, ref: ShardRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Suspended past the lease, then woken: the shard is another's by then, and stays it."""
    checkpoints = Ledger.checkpoints

    def slow(ledger: Ledger, of: ShardRef) -> dict[int, bytes]:
        ledger._redis.zrem("longhaul:leases", str(of))  # what the reconciler does once the time is up
        taken.append(take(station, ref, seconds=60))
        return checkpoints(ledger, of)

    taken: list[Claim] = []
    monkeypatch.setattr(Ledger, "checkpoints", slow)
    work(station, ref)
    assert [claim.epoch for claim in taken] == [2]
    assert station.store.size(JobKeys(ref.job).part(0)) is None
    assert station.ledger.status(ref.job).succeeded == 0
    assert station.ledger.checkpoints(ref) == {}


def test_a_shard_that_fails_again_and_again_ends_in_errors(station: Station, ref: ShardRef) -> None:
    for _ in range(station.settings.max_attempts):
        station.ledger.release(take(station, ref, seconds=60), counts=True)
    work(station, ref)
    codes = [line["error"]["code"] for line in part_of(station.store, ref)]  # type: ignore[index]
    assert codes == ["engine_error", "engine_error", "invalid_json", "engine_error"]


def test_a_job_whose_input_is_gone_fails_and_says_why(station: Station, ref: ShardRef) -> None:
    station.store.delete([JobKeys(ref.job).input])
    for _ in range(station.settings.max_attempts):
        work(station, ref)
    status = station.ledger.status(ref.job)
    assert status.state is JobState.FAILED
    assert "input.jsonl" in (status.problem or "")


def test_a_station_that_drains_hands_the_shard_back(station: Station, ref: ShardRef) -> None:
    dispatching = replace(station, dispatch=station.hand_back.set)  # the signal comes right after the claim
    work(dispatching, ref)
    assert station.store.size(JobKeys(ref.job).part(0)) is None
    again = take(station, ref, seconds=60)
    assert (again.attempt, again.epoch) == (1, 2)


def test_a_lost_receipt_is_made_from_its_part(station: Station, ref: ShardRef) -> None:
    work(station, ref)
    keys = JobKeys(ref.job)
    before = receipt_of(station.store, ref)
    station.store.delete([keys.receipt(0), keys.manifest])
    station.ledger._redis.hset(f"longhaul:job:{ref.job}", "state", "finalizing")
    finalize(station.store, station.ledger, ref.job, {})
    (part,) = json.loads(station.store.get(keys.manifest))["parts"]
    assert (part["sha256"], part["succeeded"], part["failed"]) == (before.sha256, 3, 1)
    assert part["worker"] is None
