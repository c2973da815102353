"""The ledger against a real Valkey: who may write what, and that nothing is left behind."""

import socket
from collections.abc import Iterator

import msgspec
import pytest

from jobs.errors import JobsError, LeaseLostError, LedgerError, UnknownJobError
from jobs.ledger import Ledger, Refusal, Tally, WorkerInfo, queue_key
from jobs.records import JobState, ShardRef
from jobs.settings import Settings
from tests.integration.ledger_parts import MODEL, claimed, receipt, spec
from tests.services import Valkey


@pytest.fixture
def settings(valkey: Valkey) -> Settings:
    return Settings(redis_url=valkey.url)


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Ledger]:
    ledger = Ledger.open(settings)
    yield ledger
    ledger.close()


def test_a_job_goes_from_queued_to_its_final_state(ledger: Ledger) -> None:
    assert ledger.register(spec("j", 2))
    assert not ledger.register(spec("j", 2))
    assert ledger.status("j").state is JobState.QUEUED
    refs = ledger.dispatch(MODEL, 16)
    assert refs == [ShardRef("j", 0), ShardRef("j", 1)]
    assert ledger.dispatch(MODEL, 16) == []

    first = claimed(ledger, refs[0])
    assert ledger.status("j").state is JobState.IN_PROGRESS
    ledger.checkpoint(first, {1: b"one"})
    assert ledger.checkpoints(refs[0]) == {1: b"one"}
    assert ledger.status("j").checkpointed == 1
    assert not ledger.commit(first, receipt(0, 1, 1), 60)
    assert ledger.commit(claimed(ledger, refs[1]), receipt(1), 60)

    status = ledger.status("j")
    assert status.state is JobState.FINALIZING
    assert (status.succeeded, status.failed, status.checkpointed, status.committed_shards) == (3, 1, 0, 2)
    assert (status.prompt_tokens, status.completion_tokens, status.device_seconds) == (20, 10, 3.0)
    assert ledger.take_finalizing(60) == []
    assert ledger.finish("j", JobState.COMPLETED)
    assert not ledger.finish("j", JobState.COMPLETED)
    assert ledger.status("j").state is JobState.COMPLETED


def test_nothing_but_the_job_is_left_when_it_has_ended(ledger: Ledger) -> None:
    ledger.register(spec("j", 3))
    for ref in ledger.dispatch(MODEL, 16):
        claim = claimed(ledger, ref)
        ledger.checkpoint(claim, {1: b"x"})
        ledger.commit(claim, receipt(ref.shard), 60)
    ledger.finish("j", JobState.COMPLETED)
    left = {key.decode() for key in ledger._redis.keys("*")}
    assert left == {"longhaul:job:j", "longhaul:jobs", "longhaul:models"}


def test_a_shard_has_one_owner(ledger: Ledger) -> None:
    ledger.register(spec("j", 1))
    (ref,) = ledger.dispatch(MODEL, 1)
    first = claimed(ledger, ref, "a")
    assert ledger.claim(ref, "b", 60) == Refusal("leased")
    again = msgspec.structs.replace(claimed(ledger, ref, "a"), waited_seconds=first.waited_seconds)
    assert again == first, "a claim whose answer was lost may be repeated"
    assert ledger.claim(ShardRef("j", 7), "b", 60) == Refusal("unopened")
    assert ledger.claim(ShardRef("nobody", 0), "b", 60) == Refusal("unknown")
    ledger.commit(first, receipt(0), 60)
    assert ledger.claim(ref, "b", 60) == Refusal("committed")


def test_an_old_epoch_is_refused_everywhere(ledger: Ledger) -> None:
    ledger.register(spec("j", 1))
    (ref,) = ledger.dispatch(MODEL, 1)
    old = claimed(ledger, ref, "a", seconds=0)
    ledger.checkpoint(old, {1: b"kept"})
    new = claimed(ledger, ref, "b")
    assert (new.epoch, new.attempt) == (2, 1)
    with pytest.raises(LeaseLostError):
        ledger.checkpoint(old, {2: b"late"})
    with pytest.raises(LeaseLostError):
        ledger.commit(old, receipt(0), 60)
    assert ledger.renew(old, 60) is None
    ledger.release(old, counts=True)
    assert ledger.renew(new, 60) == ""
    assert ledger.checkpoints(ref) == {1: b"kept"}
    assert ledger.commit(new, receipt(0), 60)
    assert ledger.commit(new, receipt(0), 60), "a commit whose answer was lost may be repeated"
    assert ledger.status("j").succeeded == 2


def test_an_expired_lease_becomes_due_and_is_published_again(ledger: Ledger) -> None:
    ledger.register(spec("j", 1))
    (ref,) = ledger.dispatch(MODEL, 1)
    old = claimed(ledger, ref, "a", seconds=0)
    ledger.checkpoint(old, {1: b"kept"})
    assert ledger.reconcile(30) == [(MODEL, ref)]
    assert ledger.reconcile(30) == [], "a hint just published is not lost"
    assert ledger.renew(old, 60) is None
    assert ledger.checkpoints(ref) == {1: b"kept"}
    assert claimed(ledger, ref, "b").epoch == 2


def test_a_hint_is_lost_only_where_the_queue_is_shorter_than_what_is_due(
    ledger: Ledger, settings: Settings
) -> None:
    ledger.register(spec("j", 2))
    refs = ledger.dispatch(MODEL, 2)
    ledger._redis.rpush(queue_key(settings, MODEL), b"m1", b"m2")
    assert ledger.reconcile(0) == []
    ledger._redis.lpop(queue_key(settings, MODEL))
    assert ledger.reconcile(0) == [(MODEL, refs[0])]


def test_what_is_handed_back_is_no_attempt(ledger: Ledger) -> None:
    ledger.register(spec("j", 1))
    (ref,) = ledger.dispatch(MODEL, 1)
    ledger.release(claimed(ledger, ref), counts=False)
    assert ledger.reconcile(30) == [(MODEL, ref)]
    again = claimed(ledger, ref, "b")
    assert (again.attempt, again.epoch) == (1, 2)
    ledger.release(again, counts=True)
    assert claimed(ledger, ref, "c").attempt == 2


def test_an_owner_that_asks_again_gets_the_shard_it_got(ledger: Ledger) -> None:
    ledger.register(spec("a", 2))
    ledger.register(spec("b", 2))
    ledger.dispatch(MODEL, 4)
    first = claimed(ledger, ShardRef("a", 0), "me")
    again = claimed(ledger, ShardRef("a", 0), "me")
    assert (again.ref, again.epoch) == (first.ref, first.epoch)
    assert len(ledger._redis.zrange("longhaul:leases", 0, -1)) == 1


def test_the_last_commit_whose_answer_was_lost_is_told_again_to_finalize(ledger: Ledger) -> None:
    ledger.register(spec("j", 1))
    (ref,) = ledger.dispatch(MODEL, 1)
    claim = claimed(ledger, ref)
    assert ledger.commit(claim, receipt(0), 60)
    assert ledger.commit(claim, receipt(0), 60)
    ledger.finish("j", JobState.COMPLETED)
    assert not ledger.commit(claim, receipt(0), 60)
    assert ledger.status("j").succeeded == 2


def test_a_checkpoint_whose_answer_was_lost_counts_once(ledger: Ledger) -> None:
    ledger.register(spec("j", 1))
    (ref,) = ledger.dispatch(MODEL, 1)
    claim = claimed(ledger, ref)
    tally = Tally(failed=1, prompt_tokens=7, completion_tokens=5, device_seconds=0.5)
    for _ in range(2):
        ledger.checkpoint(claim, {1: b"x", 2: b"y"}, tally)
    status = ledger.status("j")
    assert (status.checkpointed, status.checkpointed_failed) == (2, 1)
    assert (status.prompt_tokens, status.completion_tokens) == (7, 5)


def test_attempts_count_from_the_last_line_that_was_finished(ledger: Ledger) -> None:
    ledger.register(spec("j", 1))
    (ref,) = ledger.dispatch(MODEL, 1)
    for attempt in (1, 2, 3):
        claim = claimed(ledger, ref, f"dead-{attempt}", seconds=0)
        assert claim.attempt == attempt
    ledger.checkpoint(claim, {1: b"x"})
    again = claimed(ledger, ref, "b", seconds=0)
    assert (again.attempt, again.epoch) == (1, 4)


def test_what_dead_attempts_cost_is_known_to_their_followers(ledger: Ledger) -> None:
    ledger.register(spec("j", 1))
    (ref,) = ledger.dispatch(MODEL, 1)
    first = claimed(ledger, ref, "a", seconds=0)
    ledger.checkpoint(first, {1: b"x"}, Tally(device_seconds=2.0, wasted_seconds=0.25))
    ledger.renew(first, 0, unkept_seconds=1.5)
    ledger.suspect(first, "2-3")
    second = claimed(ledger, ref, "b")
    assert (second.device_seconds, second.wasted_seconds, second.suspects) == (2.0, 1.75, "2-3")
    ledger.release(second, counts=False, unkept_seconds=1.0)
    assert claimed(ledger, ref, "c").wasted_seconds == 2.75
    with pytest.raises(LeaseLostError):
        ledger.suspect(second, "")


def test_a_job_past_its_deadline_is_called_off_as_expired(ledger: Ledger) -> None:
    now = ledger.now()
    ledger.register(msgspec.structs.replace(spec("late", 4), deadline=now - 1))
    ledger.register(msgspec.structs.replace(spec("early", 4), deadline=now + 3600))
    ledger.dispatch(MODEL, 2)
    running = claimed(ledger, ShardRef("late", 0))
    while running.ref.job != "late":
        running = claimed(ledger, ShardRef("late", 0), f"again-{running.ref}")
    ledger.reconcile(30)
    assert ledger.renew(running, 60) == "expired"
    assert ledger.status("late").state is JobState.FINALIZING
    assert ledger.status("early").outcome == ""
    assert ledger.commit(running, receipt(0), 60), "nothing else of it was begun"


def test_one_at_a_time_reconciles(ledger: Ledger) -> None:
    ledger.register(spec("j", 1))
    (ref,) = ledger.dispatch(MODEL, 1)
    assert ledger.reconcile(0, turn_seconds=60) == [(MODEL, ref)]
    assert ledger.reconcile(0, turn_seconds=60) == [], "another's turn"
    assert ledger.reconcile(0) == [(MODEL, ref)]


def test_cancel_drops_what_was_not_begun_and_keeps_what_was(ledger: Ledger) -> None:
    ledger.register(spec("j", 10))
    refs = ledger.dispatch(MODEL, 4)
    running = claimed(ledger, refs[0])
    begun = claimed(ledger, refs[1])
    ledger.checkpoint(begun, {3: b"done"})
    ledger.release(begun, counts=False)
    assert ledger.cancel("j") is JobState.FINALIZING
    assert ledger.dispatch(MODEL, 4) == []
    assert ledger.renew(running, 60) == "cancelled"
    rest = claimed(ledger, refs[2], "b")
    assert (rest.ref, rest.outcome) == (refs[1], "cancelled"), "what was begun is all that is left"
    assert ledger.claim(refs[2], "c", 60) == Refusal("committed")
    assert not ledger.commit(running, receipt(0), 60)
    assert ledger.commit(rest, receipt(1), 60)
    ledger.finish("j", JobState.CANCELLED)
    assert ledger.cancel("j") is JobState.CANCELLED


def test_cancel_before_anything_began_leaves_the_job_to_the_reconciler(ledger: Ledger) -> None:
    ledger.register(spec("j", 10))
    ledger.dispatch(MODEL, 4)
    ledger.cancel("j")
    assert ledger.take_finalizing(60) == ["j"]
    assert ledger.take_finalizing(60) == []


def test_a_finalizer_that_dies_is_followed_by_another(ledger: Ledger) -> None:
    ledger.register(spec("j", 1))
    (ref,) = ledger.dispatch(MODEL, 1)
    assert ledger.commit(claimed(ledger, ref), receipt(0), finalize_seconds=0)
    assert ledger.take_finalizing(60) == ["j"]


def test_workers_are_listed_while_they_live(ledger: Ledger) -> None:
    now = ledger.now()
    living = WorkerInfo(name="a", model=MODEL, group="cpu:0", started_at=now, seen_at=now)
    ledger.announce(living)
    ledger.announce(WorkerInfo(name="b", model=MODEL, group="cpu:1", started_at=0, seen_at=now - 60))
    assert ledger.workers() == [living]
    ledger.withdraw("a")
    assert ledger.workers() == []


def test_errors_say_where_and_what(ledger: Ledger, valkey: Valkey) -> None:
    with pytest.raises(UnknownJobError, match="no job nobody"):
        ledger.status("nobody")
    with pytest.raises(JobsError, match="not a job id"):
        ledger.status("../escape")
    ledger.note("nobody", "x")
    valkey.stop()
    with pytest.raises(LedgerError, match=f"127.0.0.1:{valkey.port}"):
        ledger.ping()


def test_a_problem_is_shown_until_the_next_commit(ledger: Ledger) -> None:
    ledger.register(spec("j", 1))
    (ref,) = ledger.dispatch(MODEL, 1)
    ledger.note("j", "store is full")
    assert ledger.status("j").problem == "store is full"
    ledger.commit(claimed(ledger, ref), receipt(0), 60)
    assert ledger.status("j").problem is None


@pytest.mark.slow
def test_a_redis_that_takes_connections_and_says_nothing_is_an_error_within_seconds() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        ledger = Ledger.open(
            Settings.model_validate({"redis_url": f"redis://127.0.0.1:{silent.getsockname()[1]}/0"})
        )
        with pytest.raises(LedgerError, match="does not serve"):
            ledger.ping()


def test_a_clock_that_was_set_back_keeps_nobody_waiting(ledger: Ledger) -> None:
    """Leases, hints and turns of the time before lie far ahead then."""
    ledger.register(spec("j", 2))
    refs = ledger.dispatch(MODEL, 2)
    claimed(ledger, refs[0])
    hour = 3600 * 1000
    for key in ("longhaul:leases", "longhaul:due:small"):
        for member, score in ledger._redis.zrange(key, 0, -1, withscores=True):
            ledger._redis.zadd(key, {member: score + hour})
    ledger._redis.set("longhaul:reconciler", round(ledger.now() * 1000) + hour)
    ledger.reconcile(0, turn_seconds=1, lease_seconds=0)
    assert {ref for _, ref in ledger.reconcile(0)} == set(refs)
