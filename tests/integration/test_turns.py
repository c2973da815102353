"""Whose shard is next: fair turns between jobs, against a real Valkey."""

from collections.abc import Iterator

import pytest

from jobs.ledger import Ledger
from jobs.records import Priority, ShardRef
from jobs.settings import Settings
from tests.integration.ledger_parts import MODEL, claimed, receipt, spec
from tests.services import Valkey


@pytest.fixture
def ledger(valkey: Valkey) -> Iterator[Ledger]:
    ledger = Ledger.open(Settings(redis_url=valkey.url))
    yield ledger
    ledger.close()


def serve(ledger: Ledger, hint: ShardRef, times: int) -> list[str]:
    """Whose shards one worker gets, one after the other, whatever its hints say."""
    served = []
    for turn in range(times):
        ledger.dispatch(MODEL, 16)
        claim = claimed(ledger, hint, f"turn-{turn}-{hint}")
        ledger.commit(claim, receipt(claim.ref.shard), 60)
        served.append(claim.ref.job)
    return served


def test_a_small_job_starts_with_the_next_shard_that_is_claimed(ledger: Ledger) -> None:
    """Beside one of 4,000 shards, whose hints fill the queue."""
    ledger.register(spec("long", 4000))
    hint = ShardRef("long", 0)
    assert set(serve(ledger, hint, 50)) == {"long"}
    ledger.dispatch(MODEL, 16)
    ledger.register(spec("short", 2))
    assert "short" in {ref.job for ref in ledger.dispatch(MODEL, 16)}, "though the backlog is full"
    after = []
    for turn in range(4):
        after.append(claimed(ledger, hint, f"next-{turn}").ref.job)
        ledger.dispatch(MODEL, 16)
    assert after[0] == "short"
    assert after.count("short") == 2


def test_shards_of_jobs_take_turns_by_weight(ledger: Ledger) -> None:
    for job, priority in (("low", Priority.LOW), ("normal", Priority.NORMAL), ("high", Priority.HIGH)):
        ledger.register(spec(job, 1000, priority))
    served = serve(ledger, ShardRef("low", 0), 210)
    assert [served.count(job) for job in ("low", "normal", "high")] == [10, 40, 160]


def test_an_endless_stream_of_small_jobs_starves_nobody(ledger: Ledger) -> None:
    ledger.register(spec("long", 1000))
    served = []
    for number in range(40):
        ledger.register(spec(f"small-{number}", 1))
        served += serve(ledger, ShardRef("long", 0), 1)
    assert served.count("long") >= 5


def test_every_one_of_many_jobs_gets_its_turn(ledger: Ledger) -> None:
    for number in range(60):
        ledger.register(spec(f"job-{number}", 3))
    assert len(set(serve(ledger, ShardRef("job-0", 0), 60))) == 60


def test_a_hint_gets_its_own_shard_where_its_job_has_the_turn(ledger: Ledger) -> None:
    ledger.register(spec("j", 3))
    ledger.dispatch(MODEL, 3)
    assert claimed(ledger, ShardRef("j", 2), "a").ref == ShardRef("j", 2)
    assert claimed(ledger, ShardRef("j", 2), "b").ref == ShardRef("j", 0), "the hinted one is taken"
