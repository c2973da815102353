"""The commit protocol step by step: a station in this process, with a real ledger, store and tiny engine."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from jobs import dialogue
from jobs.dialogue import Dialogue, Sampling
from jobs.ledger import Claim, Ledger
from jobs.records import JobKeys, JobSpec, JobState, Receipt, ShardRef
from jobs.storage import Store
from model.chat import Chat
from producer.client import Client
from producer.submission import Order
from tests.fleet import Place
from tests.services import Valkey
from tests.tiny_checkpoint import make_tiny_checkpoint
from worker.engine_host import EngineHost
from worker.generation import Flight, Model
from worker.groups import parse_groups
from worker.leases import LeaseKeeper
from worker.manifest import finalize
from worker.metrics import Metrics
from worker.sampling import model_sampling
from worker.shard import work
from worker.station import Station

LINES = 4
(GROUP,) = parse_groups("cpu:0")
METRICS = Metrics(model="tiny", group=str(GROUP))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = make_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "model")
    place = Place.at(path, redis="redis://127.0.0.1:1", model=path)
    engine = EngineHost.open(GROUP, path, place.settings, METRICS)
    ready = engine.start()
    yield Model(
        name="tiny",
        engine=engine,
        chat=Chat.load(path),
        max_model_len=ready.max_model_len,
        defaults=model_sampling(path),
        versions=ready.versions,
        hash="sha256:tiny",
    )
    engine.close()


@pytest.fixture
def place(valkey: Valkey, tmp_path: Path) -> Place:
    return Place.at(
        tmp_path,
        redis=valkey.url,
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
        metrics=METRICS,
        dispatch=lambda: None,
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


def take(station: Station, ref: ShardRef, seconds: float, owner: str = "another") -> Claim:
    claim = station.ledger.claim(ref, owner, seconds)
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


def test_the_receipt_of_who_wrote_the_part_stays(
    station: Station, ref: ShardRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It died between its receipt and its commit; whoever counts the part did not make it."""

    def dead(ledger: Ledger, *arguments: object) -> bool:
        del ledger, arguments
        raise Death

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "commit", dead)
        with pytest.raises(Death):
            work(station, ref)
    before = receipt_of(station.store, ref)
    work(replace(station, worker="another"), ref)
    assert receipt_of(station.store, ref) == before
    assert before.worker == "here"
    assert station.ledger.status(ref.job).succeeded == 3


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
        ledger._redis.zadd("longhaul:leases", {str(of): 0})  # its time is up
        taken.append(take(station, ref, seconds=60))
        return checkpoints(ledger, of)

    taken: list[Claim] = []
    monkeypatch.setattr(Ledger, "checkpoints", slow)
    work(station, ref)
    assert [claim.epoch for claim in taken] == [2]
    assert station.store.size(JobKeys(ref.job).part(0)) is None
    assert station.ledger.status(ref.job).succeeded == 0
    assert station.ledger.checkpoints(ref) == {}


def test_a_line_that_kills_its_worker_is_found_and_the_others_are_answered(
    station: Station, ref: ShardRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker dies whenever the engine is to have line 4: what it noted leads its followers to that line."""
    send = Flight._send

    def deadly(flight: Flight, lines: list[Dialogue]) -> None:
        if any(line.line == 4 for line in lines):
            raise Death
        send(flight, lines)

    monkeypatch.setattr(Flight, "_send", deadly)
    deaths = 0
    while station.ledger.status(ref.job).state is not JobState.COMPLETED:
        assert deaths < 12
        try:
            work(station, ref)
        except Death:
            deaths += 1
    codes = [line["error"] and line["error"]["code"] for line in part_of(station.store, ref)]  # type: ignore[index]
    assert codes == [None, None, "invalid_json", "engine_error"]
    assert deaths >= station.settings.max_attempts + 1


def test_a_shard_that_died_of_its_worker_alone_is_answered_whole(station: Station, ref: ShardRef) -> None:
    for number in range(station.settings.max_attempts + 3):
        take(station, ref, seconds=0, owner=f"dead-{number}")
    work(station, ref)
    assert [bool(line["error"]) for line in part_of(station.store, ref)] == [False, False, True, False]


def test_a_line_under_suspicion_gets_a_second_chance(station: Station, ref: ShardRef) -> None:
    """Its worker died while it was alone: that may have been chance."""
    dead = take(station, ref, seconds=0)
    station.ledger.suspect(dead, "4-4")
    work(station, ref)
    assert [bool(line["error"]) for line in part_of(station.store, ref)] == [False, False, True, False]


def test_a_shard_under_suspicion_whose_lines_are_all_there_is_committed(
    station: Station, ref: ShardRef
) -> None:
    dead = take(station, ref, seconds=0)
    station.ledger.suspect(dead, "1-2")
    lines = {n: dialogue.error_line(ref.job, n, None, "engine_error", "kept") for n in (1, 2, 4)}
    station.ledger.checkpoint(dead, lines)
    work(station, ref)
    assert len(part_of(station.store, ref)) == LINES


def test_lines_of_an_earlier_job_are_taken_over_where_the_weights_are_the_same(
    station: Station, place: Place, ref: ShardRef
) -> None:
    work(station, ref)
    again = replace_spec(station, place, reuse_of=ref.job)
    asked = station.model.engine.requests
    work(station, again)
    assert station.model.engine.requests == asked
    first, second = part_of(station.store, ref), part_of(station.store, again)
    for number, (old, new) in enumerate(zip(first, second, strict=True), start=1):
        assert new["id"] == f"{again.job}-{number}"
        assert (new["error"] is None) == (old["error"] is None)
    text = [line["response"]["body"]["choices"] for line in (first[0], second[0])]  # type: ignore[index]
    assert text[0] == text[1]
    other = replace(station, model=replace(station.model, hash="sha256:another"))
    work(other, replace_spec(station, place, reuse_of=ref.job))
    assert station.model.engine.requests == asked + 3


def test_the_receipt_says_who_made_the_part_and_what_was_lost(station: Station, ref: ShardRef) -> None:
    dead = take(station, ref, seconds=0)
    station.ledger.renew(dead, 0, unkept_seconds=1.25)
    work(station, ref)
    receipt = receipt_of(station.store, ref)
    assert (receipt.group, receipt.model_hash) == ("cpu:0", "sha256:tiny")
    assert receipt.wasted_device_seconds == 1.25
    manifest = json.loads(station.store.get(JobKeys(ref.job).manifest))
    assert manifest["totals"]["wasted_device_seconds"] == 1.25
    assert manifest["model"] == {"name": "tiny", "hashes": ["sha256:tiny"]}


def test_a_job_past_its_deadline_keeps_what_is_finished(
    station: Station, place: Place, ref: ShardRef
) -> None:
    station.ledger.cancel(ref.job)
    late = replace_spec(station, place, deadline=station.ledger.now() - 1)
    begun = take(station, late, seconds=0)
    kept = dialogue.error_line(late.job, 1, None, "engine_error", "kept")
    station.ledger.checkpoint(begun, {1: kept})
    station.ledger.reconcile(0)
    work(station, late)
    codes = [line["error"]["code"] for line in part_of(station.store, late)]  # type: ignore[index]
    assert codes == ["engine_error", "deadline_exceeded", "invalid_json", "deadline_exceeded"]
    assert station.ledger.status(late.job).state is JobState.EXPIRED


class Death(BaseException):
    """What ends a process without a word, as far as one can without ending it."""


def replace_spec(station: Station, place: Place, **changes: object) -> ShardRef:
    """Another job of the same input, with these fields; its one shard is due."""
    with place.client() as client:
        old = submitted(client, place.folder / "input.jsonl")
    spec = msgspec.json.decode(station.store.get(JobKeys(old).spec), type=JobSpec)
    new = msgspec.structs.replace(spec, id=f"{old}-changed", **changes)
    station.ledger.cancel(old)
    root = Path(station.store.url.removeprefix("file://")) / "jobs"
    shutil.copytree(root / old, root / new.id)
    station.store.put(JobKeys(new.id).spec, msgspec.json.encode(new))
    station.ledger.register(new)
    station.ledger.dispatch("tiny", 16)
    return ShardRef(new.id, 0)


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
