"""Retries against a real Redis and a real store: which lines are tried again, how, and what comes of both."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobs.broker import celery_app
from jobs.dialogue import Dialogue, Sampling
from jobs.errors import LedgerError, StoreError, UnknownJobError
from jobs.origin import read_origins
from jobs.records import JobKeys, JobSpec, JobState, Priority
from jobs.settings import Settings, load_settings
from jobs.storage import Sink, Store
from producer.client import Client
from producer.errors import OptionError, UnconfirmedError, UnfinishedError
from producer.retry import Retry, retry
from producer.submission import Order, Services
from tests.integration.failing_store import FailingStore
from tests.integration.fleet_of_one import FleetOfOne
from tests.services import S3, Valkey


def prompts(*texts: str) -> list[object]:
    return [{"prompt": text} for text in texts]


def submitted(client: Client, *rows: object, **options: object) -> JobSpec:
    """A job of these lines; bytes are a line as it is."""
    data = (row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)
    Path("in.jsonl").write_bytes(b"\n".join(data))
    return client.submit(Order(sources=("in.jsonl",), model="m", **options)).spec  # type: ignore[arg-type]


def retried(client: Client, job: JobSpec, **options: object) -> JobSpec:
    """The retry, which must have something to do."""
    submission = client.retry(Retry(job=job.id, **options)).submission  # type: ignore[arg-type]
    assert submission is not None
    return submission.spec


def origins(client: Client, job: JobSpec) -> list[int]:
    return list(read_origins(client.store, JobKeys(job.id)))


def input_of(client: Client, job: JobSpec) -> list[bytes]:
    return client.store.get(JobKeys(job.id).input).splitlines()


def answers(lines: Iterator[bytes]) -> list[tuple[int, str]]:
    """Number and text or error code of each line."""
    found = []
    for row in lines:
        read = json.loads(row)
        number = int(read["id"].rpartition("-")[2])
        body = (read["response"] or {}).get("body")
        found.append((number, body["choices"][0]["message"]["content"] if body else read["error"]["code"]))
    return found


def answering(**instead: str) -> Callable[[Dialogue], str | None]:
    """Answers with the text itself, or what is given for it; an empty answer fails the line."""
    return lambda line: instead.get(line.messages[-1].content, line.messages[-1].content) or None


def test_the_failed_lines_are_tried_again_and_joined(client: Client, settings: Settings) -> None:
    job = submitted(
        client,
        *prompts("a", "b"),
        *prompts("c", "d"),
        b"no json",
        {"prompt": "e", "custom_id": "E"},
        system="S",
        prompt_template="{text}",
        priority=Priority.HIGH,
        sampling=Sampling(max_tokens=4, seed=1),
    )
    FleetOfOne(settings=settings, answer=answering(b="", c="", e="")).work(job)
    assert client.status(job.id).failed == 4

    result = client.retry(Retry(job=job.id, sampling=Sampling(max_tokens=9)))
    assert result.origin == job
    assert result.submission is not None
    again = result.submission.spec
    assert origins(client, again) == [2, 3, 6]
    assert (again.lines, again.rejected, again.shards) == (3, 0, 2)
    assert (again.retry_of, again.model, again.source) == (job.id, "m", f"retry of {job.id}")
    assert (again.system, again.prompt_template, again.priority) == ("S", "{text}", Priority.HIGH)
    assert again.sampling == Sampling(max_tokens=9, seed=1)
    assert input_of(client, again) == input_of(client, job)[1:3] + input_of(client, job)[5:]

    with pytest.raises(UnfinishedError, match=f"{again.id}, a retry of {job.id}"):
        list(client.results(job.id, merge=True))
    FleetOfOne(settings=settings, answer=answering(b="B", c="")).work(again)
    assert answers(client.results(job.id, merge=True)) == [
        (1, "a"),
        (2, "B"),
        (3, "engine_error"),
        (4, "d"),
        (5, "invalid_json"),
        (6, "e"),
    ]
    rows = [json.loads(row) for row in client.results(job.id, merge=True)]
    assert {row["id"].rpartition("-")[0] for row in rows} == {job.id}
    assert rows[5]["custom_id"] == "E"


def test_a_cancelled_job_is_tried_again_with_the_lines_it_never_began(
    client: Client, settings: Settings
) -> None:
    job = submitted(client, *prompts("a", "fail", "c", "d", "fail"))
    fleet = FleetOfOne(settings=settings)
    fleet.work(job, range(1))
    with pytest.raises(UnfinishedError, match=f"job {job.id} has not finished"):
        client.retry(Retry(job=job.id))
    client.cancel(job.id)
    fleet.end()
    assert client.status(job.id).state is JobState.CANCELLED

    failed = retried(client, job, failed_only=True)
    assert origins(client, failed) == [2]
    FleetOfOne(settings=settings, answer=answering(fail="B")).work(failed)
    # What one retry has answered the next leaves alone.
    rest = retried(client, job)
    assert origins(client, rest) == [3, 4, 5]
    assert client.retry(Retry(job=failed.id)).submission is None
    fleet.work(rest)
    assert answers(client.results(job.id, merge=True)) == [
        (1, "a"),
        (2, "B"),
        (3, "c"),
        (4, "d"),
        (5, "engine_error"),
    ]


def test_a_job_past_its_deadline_is_tried_again_without_it(client: Client, settings: Settings) -> None:
    job = submitted(client, *prompts("a", "b", "c"), deadline=client.ledger.now() + 3600)
    client.ledger.call_off(job.id, JobState.EXPIRED)
    FleetOfOne(settings=settings).end()
    again = retried(client, job)
    assert again.deadline is None
    assert origins(client, again) == [1, 2, 3]


def test_a_retry_of_a_retry(client: Client, settings: Settings) -> None:
    job = submitted(client, *prompts("a", "b", "c", "d"))
    FleetOfOne(settings=settings, answer=answering(b="", c="", d="")).work(job)
    child = retried(client, job, sampling=Sampling(temperature=0.5))
    FleetOfOne(settings=settings, answer=answering(b="", d="")).work(child)
    grandchild = retried(client, child, sampling=Sampling(top_k=3))
    assert grandchild.sampling == Sampling(temperature=0.5, top_k=3)
    assert (grandchild.retry_of, origins(client, grandchild)) == (child.id, [1, 3])
    with pytest.raises(UnfinishedError, match=grandchild.id):
        client.retry(Retry(job=job.id))
    FleetOfOne(settings=settings, answer=answering(d="")).work(grandchild)
    assert answers(client.results(job.id, merge=True)) == [
        (1, "a"),
        (2, "b"),
        (3, "c"),
        (4, "engine_error"),
    ]
    assert origins(client, retried(client, job)) == [4]


def test_an_option_goes_before_what_a_line_says_for_itself(client: Client, settings: Settings) -> None:
    rows = [
        b'\xef\xbb\xbf{"prompt":"1", "max_tokens":1, "min_tokens":1, "x":1e999}',
        b'{"body":{"messages":[{"role":"user","content":"2"}],"max_completion_tokens":2,"seed":7}}',
        b'[{"role": "user", "content": "3"}]\r',
        b'{ "prompt":"max_tokens" }',
    ]
    job = submitted(client, *rows)
    FleetOfOne(settings=settings, answer=lambda _: None).work(job)

    same = retried(client, job)
    assert input_of(client, same) == [row.removesuffix(b"\r") for row in rows]
    assert client.store.get(JobKeys(same.id).input) == b"\n".join(rows) + b"\n"
    FleetOfOne(settings=settings, answer=lambda _: None).work(same)

    asked = []

    def note(line: Dialogue) -> str | None:
        asked.append((line.messages[-1].content, line.sampling))
        return "ok"

    more = retried(client, job, sampling=Sampling(max_tokens=9))
    FleetOfOne(settings=settings, answer=note).work(more)
    assert asked == [
        ("1", Sampling(max_tokens=9, min_tokens=1)),
        ("2", Sampling(max_tokens=9, seed=7)),
        ("3", Sampling(max_tokens=9)),
        ("max_tokens", Sampling(max_tokens=9)),
    ]
    assert client.store.get(JobKeys(more.id).input).splitlines()[3] == rows[3]


def test_nothing_to_try_again_makes_no_job(client: Client, settings: Settings) -> None:
    job = submitted(client, *prompts("a"), b"no json")
    FleetOfOne(settings=settings).work(job)
    before = set(client.store.list(""))
    result = client.retry(Retry(job=job.id))
    assert (result.submission, result.origin.rejected) == (None, 1)
    assert set(client.store.list("")) == before
    assert len(client.jobs()) == 1


def test_a_line_over_the_limit_is_not_even_read(client: Client, settings: Settings) -> None:
    job = submitted(client, {"prompt": "x" * settings.max_line_bytes}, *prompts("fail"))
    FleetOfOne(settings=settings).work(job)
    again = retried(client, job)
    assert origins(client, again) == [2]
    assert again.input_bytes < 100


def test_what_can_not_be_tried_again_is_refused(client: Client, settings: Settings) -> None:
    with pytest.raises(UnknownJobError):
        client.retry(Retry(job="job-none"))
    job = submitted(client, *prompts("fail"), sampling=Sampling(min_tokens=5, max_tokens=8))
    FleetOfOne(settings=settings).work(job)
    with pytest.raises(OptionError, match="min_tokens 5 is over max_tokens 4"):
        client.retry(Retry(job=job.id, sampling=Sampling(max_tokens=4)))
    with pytest.raises(OptionError, match="passed"):
        Retry(job=job.id, deadline=1.0)
    assert len(client.jobs()) == 1


@pytest.mark.parametrize("broken", ["input.jsonl", "origin.idx", "/retries/", "job.json", "reuse/"])
def test_a_store_that_breaks_leaves_no_retry(
    client: Client, settings: Settings, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submitted(client, *prompts("fail"))
    FleetOfOne(settings=settings).work(job)
    before = set(client.store.list("jobs/"))
    monkeypatch.setattr(FailingStore, "broken", broken)
    services = Services(
        settings=settings,
        store=FailingStore.open(settings),
        ledger=client.ledger,
        app=celery_app(settings),
    )
    with pytest.raises(StoreError, match="full"):
        retry(Retry(job=job.id), services)
    assert set(client.store.list("jobs/")) == before
    assert len(client.jobs()) == 1


class WatchedStore(Store):
    """A store that notes what is written, as it becomes visible."""

    written: tuple[str, ...] = ()

    def put(self, key: str, data: bytes) -> None:
        super().put(key, data)
        self.written = (*self.written, key)

    @contextmanager
    def writer(self, key: str) -> Iterator[Sink]:
        with super().writer(key) as sink:
            yield sink
        self.written = (*self.written, key)


def test_whoever_sees_a_retry_sees_all_of_it(client: Client, settings: Settings) -> None:
    """Wherever a submission breaks off, no job is there whose lines could not be joined."""
    job = submitted(client, *prompts("fail"))
    FleetOfOne(settings=settings).work(job)
    store = WatchedStore.open(settings)
    assert isinstance(store, WatchedStore)
    services = Services(settings=settings, store=store, ledger=client.ledger, app=celery_app(settings))
    submission = retry(Retry(job=job.id), services).submission
    assert submission is not None
    keys = JobKeys(submission.spec.id)
    mark = f"{JobKeys(job.id).retries}/{submission.spec.id}"
    before = store.written[: store.written.index(keys.spec)]
    assert {keys.input, keys.shards, keys.rejects, keys.origin, mark} == set(before)


def test_a_retry_that_was_never_registered_stands_in_nobodys_way(
    client: Client, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submitted(client, *prompts("a", "fail"))
    FleetOfOne(settings=settings).work(job)

    def lost(_spec: JobSpec) -> bool:
        raise LedgerError("Redis died")

    with monkeypatch.context() as patched:
        patched.setattr(client.ledger, "register", lost)
        with pytest.raises(UnconfirmedError):
            client.retry(Retry(job=job.id))
    # It may run for all that the store knows, so results are not called complete; Redis knows better.
    with pytest.raises(UnfinishedError):
        list(client.results(job.id, merge=True))
    assert len(answers(client.results(job.id, merge=True, partial=True))) == 2
    assert origins(client, retried(client, job)) == [2]


def test_a_lost_part_is_tried_again(client: Client, settings: Settings) -> None:
    job = submitted(client, *prompts("a", "b", "c", "d"))
    FleetOfOne(settings=settings).work(job)
    client.store.delete([JobKeys(job.id).part(1)])
    again = retried(client, job)
    assert origins(client, again) == [3, 4]
    FleetOfOne(settings=settings).work(again)
    assert answers(client.results(job.id, merge=True)) == [(1, "a"), (2, "b"), (3, "c"), (4, "d")]


def test_the_same_on_s3(valkey: Valkey, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    place = s3.url(f"retry-{os.getpid()}")
    settings = load_settings(redis_url=valkey.url, store_url=place, shard_lines=100)
    client = Client(settings)
    texts = [f"{number} {'x' * 5000}" for number in range(2000)]  # parts and inputs of several MB
    try:
        job = submitted(client, *prompts(*texts))
        FleetOfOne(
            settings=settings, answer=lambda line: None if line.line % 2 else line.messages[-1].content
        ).work(job)
        again = retried(client, job)
        assert origins(client, again) == list(range(1, 2001, 2))
        FleetOfOne(settings=settings).work(again)
        assert answers(client.results(job.id, merge=True)) == list(enumerate(texts, start=1))
    finally:
        client.close()
