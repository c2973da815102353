"""Redis loses what it acknowledged: a ledger made anew from the store goes on with every line."""

import signal

import pytest

from tests.chaos.conftest import MakeFleet
from tests.chaos.faults import LOSSES, flush_redis
from tests.chaos.fleet import LIMIT
from tests.chaos.invariants import check
from tests.chaos.points import calls, points
from tests.chaos.work import work
from tests.chaos.workers import send

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.parametrize("name", LOSSES)
def test_all_is_lost_and_made_anew(make_fleet: MakeFleet, name: str) -> None:
    with make_fleet(seed=50) as fleet:
        fleet.start(2)
        for _ in range(3):
            fleet.submit(work(fleet.random, 40))
            fleet.submit(work(fleet.random, 12))
            fleet.progress(fleet.random.randrange(5, 45))
            LOSSES[name](fleet)
        fleet.finish()
        check(fleet)


def test_a_worker_that_slept_through_the_loss_writes_nothing(make_fleet: MakeFleet) -> None:
    """Epochs begin anew with a ledger that was lost: only the owner tells an old claim from a new one."""
    with make_fleet(seed=51, shards_in_flight="1", echo_step_seconds="0.02") as fleet:
        (first,) = fleet.start(1)
        fleet.submit(work(fleet.random, 24))
        fleet.progress(3)
        fleet.note("suspend worker 0, and FLUSHALL meanwhile")
        send(first.pid, signal.SIGSTOP)
        fleet.sleeps(first.pid, seconds=LIMIT)
        flush_redis(fleet)
        fleet.start(1)

        def taken_over() -> bool:
            claims = [event for event in fleet.events.named("ledger.claim", "after") if event.result]
            held = {event.result["ref"] for event in claims if event.pid == first.pid}
            return any(event.pid != first.pid and event.result["ref"] in held for event in claims)

        fleet.until(taken_over, "another to have the shard that worker 0 takes for its own")
        fleet.sleeps(first.pid, seconds=0)
        fleet.finish()
        check(fleet)
        fleet.until(lambda: "lease lost" in first.log.read_text(), "worker 0 to notice")


@pytest.mark.parametrize("action", ["kill", "fail"])
def test_a_rebuild_ends_around_each_of_its_calls(make_fleet: MakeFleet, action: str) -> None:
    called = ["ledger.restore", "store.list", "store.folders", "store.size", "store.get"]
    assert set(called) <= set(calls())
    armed = list(points(called, action))
    with make_fleet(seed=52) as fleet:
        fleet.arm("rebuild", armed)
        fleet.start(2)
        for _ in range(2):
            fleet.submit(work(fleet.random, 40))
        fleet.progress(30)
        flush_redis(fleet)
        fleet.finish()
        check(fleet)
        assert sorted(fleet.events.fired()) == sorted(armed)
