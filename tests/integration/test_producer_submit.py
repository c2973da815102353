"""A submission against a real Redis and a real store: what it creates, and that nothing half-made stays."""

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from jobs.broker import celery_app
from jobs.dialogue import Sampling
from jobs.errors import LedgerError, MissingObjectError, StoreError, UnknownJobError
from jobs.records import JobKeys, JobSpec, JobState, Priority
from jobs.settings import Settings, load_settings
from jobs.storage import Store
from producer.client import Cancelled, Client
from producer.errors import InputError, OptionError, RefusedError, UnconfirmedError
from producer.submission import Order, Services, submit
from tests.integration.failing_store import FailingStore
from tests.integration.fleet_of_one import FleetOfOne
from tests.services import S3, Valkey, wait_until


def lines(*texts: str) -> bytes:
    return b"".join(json.dumps({"prompt": text}).encode() + b"\n" for text in texts)


@pytest.fixture
def order(tmp_path: Path) -> Callable[..., Order]:
    def make(data: bytes, **options: object) -> Order:
        (tmp_path / "in.jsonl").write_bytes(data)
        return Order(**{"sources": ("in.jsonl",), "model": "m", **options})  # type: ignore[arg-type]

    return make


def objects(store: Store) -> set[str]:
    return set(store.list("jobs/")) | set(store.list(".probe/"))


def test_a_job_is_whole_registered_and_published(
    client: Client, valkey: Valkey, order: Callable[..., Order]
) -> None:
    data = lines("1", "2", "3") + b"no json"
    submission = client.submit(
        order(
            data,
            system="S",
            prompt_template="T {text}",
            sampling=Sampling(max_tokens=4),
            priority=Priority.HIGH,
        )
    )
    spec = submission.spec
    keys = JobKeys(spec.id)
    assert client.store.get(keys.input) == data
    assert msgspec.json.decode(client.store.get(keys.spec), type=JobSpec) == spec
    assert (spec.lines, spec.rejected, spec.shards, spec.input_bytes) == (4, 1, 2, len(data))
    assert (spec.system, spec.prompt_template, spec.sampling) == ("S", "T {text}", Sampling(max_tokens=4))
    assert [(each.line, each.code) for each in submission.unusable] == [(4, "invalid_json")]
    assert not submission.served
    assert submission.delay is None

    now = client.status(spec.id)
    assert (now.state, now.spec, now.done_lines) == (JobState.QUEUED, spec, 0)
    with valkey.client() as redis:
        assert redis.llen("longhaul:queue:m") == 2


def test_the_whole_way_keeps_the_order(
    client: Client, settings: Settings, order: Callable[..., Order]
) -> None:
    texts = [f"text {number}" for number in range(9)]
    data = lines(*texts[:4]) + b"bad\n" + lines("fail", *texts[4:])
    spec = client.submit(order(data, prompt_template="{text}")).spec
    fleet = FleetOfOne(settings=settings)
    watched = client.watch(spec.id, every=0.01)
    assert next(watched).state is JobState.QUEUED
    fleet.work(spec, range(2))
    assert next(watched).done_lines == 4
    fleet.work(spec, range(2, spec.shards))
    end = list(watched)[-1]
    assert (end.state, end.succeeded, end.failed) == (JobState.COMPLETED, 9, 2)

    results = [json.loads(line) for line in client.results(spec.id)]
    assert [each["id"] for each in results] == [f"{spec.id}-{number}" for number in range(1, 12)]
    answers = [
        each["error"]["code"]
        if each["error"]
        else each["response"]["body"]["choices"][0]["message"]["content"]
        for each in results
    ]
    assert answers == [*texts[:4], "invalid_json", "engine_error", *texts[4:]]


def test_the_same_on_s3_and_from_an_s3_url(
    valkey: Valkey, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    place = s3.url(f"submit-{os.getpid()}")
    settings = load_settings(redis_url=valkey.url, store_url=place, shard_lines=100)
    store = Store.open(settings)
    data = lines(*(f"{number} {'x' * 5000}" for number in range(2000)))  # 10 MB: an upload of several parts
    store.put("given/in.jsonl", data)
    client = Client(settings)
    try:
        spec = client.submit(Order(sources=(f"{place}/given/in.jsonl",), model="m")).spec
        assert spec.lines == 2000
        assert b"".join(store.stream(JobKeys(spec.id).input)) == data
        FleetOfOne(settings=settings).work(spec)
        assert sum(1 for _ in client.results(spec.id)) == 2000

        with pytest.raises(MissingObjectError):
            client.submit(Order(sources=(f"{place}/given/absent.jsonl",), model="m"))
        with pytest.raises(RefusedError):
            client.submit(
                Order(sources=(f"{place}/given/in.jsonl", write_bad(tmp_path)), model="m", strict=True)
            )
        assert {key.split("/")[1] for key in store.list("jobs/")} == {spec.id}
    finally:
        client.close()


def write_bad(folder: Path) -> str:
    path = folder / "bad.jsonl"
    path.write_bytes(b"bad")
    return str(path)


def test_repeated_ids_are_refused_once_and_for_all(
    client: Client, settings: Settings, order: Callable[..., Order]
) -> None:
    rows = [{"custom_id": each, "prompt": "x"} for each in ("a", "b", "a", "c", "a")]
    spec = client.submit(order(b"".join(json.dumps(row).encode() + b"\n" for row in rows))).spec
    assert spec.rejected == 2
    FleetOfOne(settings=settings).work(spec)
    results = [json.loads(line) for line in client.results(spec.id)]
    assert [each["custom_id"] for each in results] == ["a", "b", "a", "c", "a"]
    assert [each["error"] and each["error"]["code"] for each in results] == [
        None,
        None,
        "duplicate_custom_id",
        None,
        "duplicate_custom_id",
    ]


def test_a_job_of_unusable_lines_alone_fails(
    client: Client, settings: Settings, order: Callable[..., Order]
) -> None:
    spec = client.submit(order(b"bad\nworse\n")).spec
    FleetOfOne(settings=settings).work(spec)
    assert client.status(spec.id).state is JobState.FAILED
    assert sum(1 for _ in client.results(spec.id)) == 2


def test_strict_creates_nothing(client: Client, order: Callable[..., Order]) -> None:
    with pytest.raises(RefusedError, match="2 of 3 lines") as caught:
        client.submit(order(b"bad\n" + lines("x") + b"\n", strict=True))
    assert [(each.line, each.code) for each in caught.value.unusable] == [
        (1, "invalid_json"),
        (3, "invalid_json"),
    ]
    assert client.jobs() == []
    assert objects(client.store) == set()


def test_an_empty_input_creates_nothing(client: Client, order: Callable[..., Order]) -> None:
    with pytest.raises(InputError, match="empty"):
        client.submit(order(b""))
    assert client.jobs() == []
    assert objects(client.store) == set()


def test_a_template_without_a_place_for_the_text_is_refused(order: Callable[..., Order]) -> None:
    with pytest.raises(OptionError):
        order(b"", prompt_template="Summarize")


def test_sampling_that_contradicts_itself_is_refused(order: Callable[..., Order]) -> None:
    with pytest.raises(OptionError, match="min_tokens 5 is over max_tokens 4"):
        order(b"", sampling=Sampling(min_tokens=5, max_tokens=4))


@pytest.mark.parametrize("broken", ["input.jsonl", "rejects.jsonl", "shards.idx", "job.json"])
def test_a_store_that_breaks_leaves_no_job(
    settings: Settings,
    client: Client,
    order: Callable[..., Order],
    broken: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(FailingStore, "broken", broken)
    with pytest.raises(StoreError, match="full"):
        submit(
            order(lines("x")),
            Services(
                settings=settings,
                store=FailingStore.open(settings),
                ledger=client.ledger,
                app=celery_app(settings),
            ),
        )
    assert client.jobs() == []
    assert objects(client.store) == set()


def test_an_input_that_breaks_off_leaves_no_job(client: Client, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl.gz").write_bytes(b"\x1f\x8b\x08\x00 no more")
    with pytest.raises(InputError):
        client.submit(Order(sources=("in.jsonl.gz",), model="m"))
    assert client.jobs() == []
    assert objects(client.store) == set()


def submit_from_pipe(client: Client, folder: Path, meanwhile: Callable[[], None]) -> None:
    """Submit what comes through a pipe; `meanwhile` happens after its first line."""
    pipe = folder / "pipe"
    os.mkfifo(pipe)

    def feed() -> None:
        with pipe.open("wb") as end:
            end.write(lines("x"))
            end.flush()
            meanwhile()

    feeder = threading.Thread(target=feed, daemon=True)
    feeder.start()
    try:
        client.submit(Order(sources=(str(pipe),), model="m"))
    finally:
        feeder.join(30)


def test_redis_away_at_registration_is_told_with_what_to_do(
    client: Client, valkey: Valkey, tmp_path: Path
) -> None:
    with pytest.raises(UnconfirmedError) as caught:
        submit_from_pipe(client, tmp_path, valkey.kill)
    job = str(caught.value).split()[1]
    assert f"producer status {job}" in caught.value.advice
    # It may have been taken: what a worker would read stays.
    assert client.store.size(JobKeys(job).spec)
    valkey.start()
    with pytest.raises(UnknownJobError):
        client.status(job)


def test_redis_away_from_the_start_creates_nothing(
    client: Client, valkey: Valkey, order: Callable[..., Order]
) -> None:
    valkey.kill()
    with pytest.raises(LedgerError):
        client.submit(order(lines("x")))
    assert objects(client.store) == set()


def test_watching_outlives_a_restart_of_redis(
    client: Client, settings: Settings, valkey: Valkey, order: Callable[..., Order]
) -> None:
    spec = client.submit(order(lines("x"))).spec
    watched = client.watch(spec.id, every=0.01)
    next(watched)
    valkey.stop()
    back = threading.Timer(0.5, valkey.start)
    back.start()
    problem = next(status.problem for status in watched if status.problem)
    assert problem.startswith("waiting for Redis: ")
    assert next(status for status in watched if not status.problem).state is JobState.QUEUED
    back.join()
    FleetOfOne(settings=settings).work(spec)
    assert list(watched)[-1].state is JobState.COMPLETED


def test_watching_ends_when_redis_stays_away(
    client: Client, valkey: Valkey, order: Callable[..., Order]
) -> None:
    job = client.submit(order(lines("x"))).spec.id
    watched = client.watch(job, every=0.01, patience=0.1)
    next(watched)
    valkey.kill()
    with pytest.raises(LedgerError):
        list(watched)


def test_a_cancelled_job_keeps_what_was_finished(
    client: Client, settings: Settings, order: Callable[..., Order]
) -> None:
    spec = client.submit(order(lines("1", "2", "3"))).spec
    FleetOfOne(settings=settings).work(spec, range(1))
    cancelled = client.cancel(spec.id)
    assert (cancelled.state, cancelled.unmarked) == (JobState.FINALIZING, None)
    assert client.store.get(JobKeys(spec.id).called_off) == b"cancelled"
    assert client.status(spec.id).committed_shards == 1
    assert sum(1 for _ in client.results(spec.id, partial=True)) == 2
    with pytest.raises(UnknownJobError):
        client.cancel("job-none")


def test_a_job_that_has_ended_is_not_marked(
    client: Client, settings: Settings, order: Callable[..., Order]
) -> None:
    spec = client.submit(order(lines("1"))).spec
    FleetOfOne(settings=settings).work(spec)
    assert client.cancel(spec.id) == Cancelled(state=JobState.COMPLETED)
    assert client.store.size(JobKeys(spec.id).called_off) is None


def test_the_store_is_told_of_a_cancel_before_the_ledger(
    client: Client, order: Callable[..., Order], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a ledger that is lost in between comes back with the job alive."""
    spec = client.submit(order(lines("1"))).spec

    def lost(_job_id: str) -> JobState:
        raise LedgerError("Redis died")

    monkeypatch.setattr(client.ledger, "cancel", lost)
    with pytest.raises(LedgerError):
        client.cancel(spec.id)
    assert client.store.get(JobKeys(spec.id).called_off) == b"cancelled"


def test_a_job_is_cancelled_while_the_store_is_away(
    client: Client, settings: Settings, order: Callable[..., Order], tmp_path: Path
) -> None:
    spec = client.submit(order(lines("1"))).spec
    (tmp_path / "file").touch()
    away = Client(settings.model_copy(update={"store_url": f"file://{tmp_path}/file/store"}))
    cancelled = away.cancel(spec.id)
    away.close()
    assert cancelled.state is JobState.FINALIZING
    assert cancelled.unmarked is not None
    assert "file/store" in cancelled.unmarked


def test_a_deadline_that_has_passed_is_refused(order: Callable[..., Order]) -> None:
    for deadline in (time.time() - 1, 1e20, float("nan")):
        with pytest.raises(OptionError):
            order(b"", deadline=deadline)


def test_a_job_that_hits_its_deadline_expires(
    client: Client, settings: Settings, order: Callable[..., Order]
) -> None:
    spec = client.submit(order(lines("1", "2", "3"), deadline=time.time() + 0.5)).spec
    FleetOfOne(settings=settings).work(spec, range(1))
    fleet = FleetOfOne(settings=settings)

    def expired() -> bool:
        fleet.end()
        return client.status(spec.id).state is JobState.EXPIRED

    wait_until(expired, seconds=30, what="the deadline")
    assert sum(1 for _ in client.results(spec.id)) == 2


def test_jobs_are_listed_newest_first(client: Client, order: Callable[..., Order]) -> None:
    ids = [client.submit(order(lines(text))).spec.id for text in ("1", "2")]
    assert [each.spec.id for each in client.jobs()] == ids[::-1]
    assert [each.spec.id for each in client.jobs(limit=1)] == ids[1:]
