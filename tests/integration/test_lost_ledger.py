"""Jobs that a ledger forgot, or has to be told of again, against a real Valkey."""

from collections.abc import Iterator

import pytest

from jobs.errors import LeaseLostError
from jobs.ledger import Ledger, Restored
from jobs.records import JobState, ShardRef
from jobs.settings import Settings
from tests.integration.ledger_parts import MODEL, claimed, receipt, spec
from tests.services import Valkey


@pytest.fixture
def ledger(valkey: Valkey) -> Iterator[Ledger]:
    ledger = Ledger.open(Settings(redis_url=valkey.url))
    yield ledger
    ledger.close()


def test_a_ledger_that_was_lost_refuses_what_comes_from_before(ledger: Ledger) -> None:
    """Epochs begin anew with it: the owner fences as well."""
    ledger.register(spec("j", 1))
    (ref,) = ledger.dispatch(MODEL, 1)
    old = claimed(ledger, ref, "before")
    ledger._redis.flushall()
    ledger.register(spec("j", 1))
    ledger.dispatch(MODEL, 1)
    new = claimed(ledger, ref, "after")
    assert old.epoch == new.epoch == 1
    with pytest.raises(LeaseLostError):
        ledger.checkpoint(old, {1: b"late"})
    with pytest.raises(LeaseLostError):
        ledger.commit(old, receipt(0), 60)
    assert ledger.renew(old, 60) is None
    assert ledger.commit(new, receipt(0), 60)


def test_an_ended_job_is_forgotten_after_a_while(ledger: Ledger) -> None:
    ledger.register(spec("j", 1))
    (ref,) = ledger.dispatch(MODEL, 1)
    ledger.commit(claimed(ledger, ref), receipt(0), 60)
    ledger.finish("j", JobState.COMPLETED)
    assert 29 * 86400 < ledger._redis.ttl("longhaul:job:j") <= 30 * 86400
    ledger._redis.delete("longhaul:job:j")  # what the server does then
    assert ledger.jobs() == []
    assert ledger._redis.zcard("longhaul:jobs") == 0


def restored(job: str, state: JobState, **more: object) -> Restored:
    given = {
        "outcome": "",
        "committed": 3,
        "succeeded": 5,
        "failed": 1,
        "prompt_tokens": 30,
        "completion_tokens": 15,
        "device_seconds": 4.5,
        "wasted_seconds": 0.5,
        "next": 5,
        "missing": [1, 3],
        "finished_at": None,
        **more,
    }
    return Restored(spec=spec(job, 8), state=state, **given)  # type: ignore[arg-type]


def test_a_restored_job_goes_on_with_what_it_lacks(ledger: Ledger) -> None:
    assert ledger.restore(restored("j", JobState.IN_PROGRESS))
    assert not ledger.restore(restored("j", JobState.IN_PROGRESS)), "the living is left alone"
    status = ledger.status("j")
    assert (status.state, status.succeeded, status.committed_shards) == (JobState.IN_PROGRESS, 5, 3)
    assert {ref.shard for _, ref in ledger.reconcile(0)} == {1, 3}
    shards = set()
    while (status := ledger.status("j")).state is JobState.IN_PROGRESS:
        ledger.dispatch(MODEL, 2)
        claim = claimed(ledger, ShardRef("j", 1), f"owner-{status.committed_shards}")
        shards.add(claim.ref.shard)
        ledger.commit(claim, receipt(claim.ref.shard), 60)
    assert shards == {1, 3, 5, 6, 7}
    assert (status.succeeded, status.failed, status.committed_shards) == (15, 1, 8)


def test_restored_jobs_that_have_nothing_to_do_are_finalized_or_ended(ledger: Ledger) -> None:
    ledger.restore(restored("whole", JobState.FINALIZING, next=8, missing=[]))
    ledger.restore(restored("ended", JobState.FAILED, finished_at=9.0))
    assert ledger.take_finalizing(60) == ["whole"]
    assert ledger.status("ended").finished_at == 9.0
    assert ledger._redis.ttl("longhaul:job:ended") > 0


def test_remaining_lines_are_those_of_jobs_that_have_not_ended(ledger: Ledger) -> None:
    ledger.register(spec("a", 2))
    ledger.register(spec("b", 1))
    assert ledger.remaining(MODEL) == (2, 6)
    ledger.dispatch(MODEL, 3)
    ledger.commit(claimed(ledger, ShardRef("b", 0)), receipt(0), 60)
    jobs, lines = ledger.remaining(MODEL)
    assert (jobs, lines) in {(1, 4), (2, 4)}
