"""Which earlier job a submission takes finished lines from."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from jobs.dialogue import Sampling
from jobs.records import JobKeys, JobSpec, Priority
from jobs.settings import Settings
from producer import submission
from producer.client import Client
from producer.retry import Retry
from producer.reuse import earlier_job, fingerprint, index_key
from producer.submission import Order
from tests.integration.fleet_of_one import FleetOfOne

Submit = Callable[..., JobSpec]


@pytest.fixture(autouse=True)
def _rising_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids rise with every job, where real ones do from second to second."""
    ids = (f"job-{number}" for number in range(1, 10))
    monkeypatch.setattr(submission, "new_job_id", lambda: next(ids))
    monkeypatch.setattr("producer.retry.new_job_id", lambda: next(ids))


@pytest.fixture
def submit(client: Client) -> Submit:
    def submit(*texts: str, **options: object) -> JobSpec:
        rows = (json.dumps({"prompt": text}) + "\n" for text in texts or ("a", "b", "c"))
        Path("in.jsonl").write_text("".join(rows))
        given = {"sources": ("in.jsonl",), "model": "m", "reuse": True, **options}
        return client.submit(Order(**given)).spec  # type: ignore[arg-type]

    return submit


def test_the_newest_job_of_the_same_content_is_reused(client: Client, submit: Submit) -> None:
    first = submit(reuse=False)
    assert first.reuse_of is None
    second = submit(priority=Priority.LOW, deadline=client.ledger.now() + 3600)
    assert second.reuse_of == first.id
    third = submit()
    assert third.reuse_of == second.id
    assert submit(reuse=False).reuse_of is None
    stored = msgspec.json.decode(client.store.get(JobKeys(third.id).spec), type=JobSpec)
    assert stored == third == client.status(third.id).spec


def test_the_job_that_has_finished_most_goes_before_newer_ones(
    client: Client, settings: Settings, submit: Submit
) -> None:
    for_shards = {}
    for shards in (1, 2, 1, 0):
        spec = for_shards[shards] = submit("a", "b", "c", "d", "e")
        FleetOfOne(settings=settings).work(spec, range(shards))
        client.cancel(spec.id)
        FleetOfOne(settings=settings).end()
    assert submit("a", "b", "c", "d", "e").reuse_of == for_shards[2].id


@pytest.mark.parametrize(
    "different",
    [
        {"model": "other"},
        {"system": "S"},
        {"prompt_template": "{text}!"},
        {"sampling": Sampling(max_tokens=3)},
    ],
)
def test_what_differs_is_not_reused(submit: Submit, different: dict[str, object]) -> None:
    submit()
    assert submit(**different).reuse_of is None
    assert submit("a", "b", "d").reuse_of is None


@pytest.mark.parametrize("name", ["shard_lines", "shard_bytes", "max_line_bytes"])
def test_other_shards_are_not_reused(settings: Settings, submit: Submit, name: str) -> None:
    spec = submit()
    other = settings.model_copy(update={name: getattr(settings, name) + 1})
    assert fingerprint(spec, other) != fingerprint(spec, settings)


def test_a_fingerprint_stays_what_it_is(settings: Settings) -> None:
    """It is kept in the store: whoever changes it makes all that was finished before be generated again."""
    spec = JobSpec(
        id="job-1",
        model="m",
        created_at=0,
        source="s",
        system="S",
        sampling=Sampling(temperature=0.5, max_tokens=3),
        lines=1,
        rejected=0,
        shards=1,
        input_bytes=1,
        input_sha256="0" * 64,
    )
    common = {
        "input_sha256": "0" * 64,
        "max_line_bytes": settings.max_line_bytes,
        "model": "m",
        "prompt_template": None,
        "sampling": {"max_tokens": 3, "temperature": 0.5},
        "shard_bytes": settings.shard_bytes,
        "shard_lines": settings.shard_lines,
        "system": "S",
    }
    canonical = json.dumps(common, separators=(",", ":"))
    assert fingerprint(spec, settings) == hashlib.sha256(canonical.encode()).hexdigest()


def test_a_job_that_is_no_more_is_not_reused(client: Client, settings: Settings, submit: Submit) -> None:
    first, second = submit(), submit()
    content = fingerprint(first, settings)
    client.store.put(index_key(content, "job-9-broke-off"), b"")
    assert earlier_job(client.store, content) == second.id
    client.store.delete([JobKeys(second.id).spec])
    assert earlier_job(client.store, content) == first.id
    client.store.delete([JobKeys(first.id).spec])
    assert earlier_job(client.store, content) is None


def test_a_retry_is_no_reuse(client: Client, settings: Settings, submit: Submit) -> None:
    spec = submit("a", "fail")
    FleetOfOne(settings=settings).work(spec)
    second = submit("a", "fail")
    FleetOfOne(settings=settings).work(second)
    again = client.retry(Retry(job=second.id)).submission
    assert again is not None
    assert (second.reuse_of, again.spec.reuse_of) == (spec.id, None)
