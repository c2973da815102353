"""What a network and its services do to the connections of a fleet, again and again during jobs."""

from functools import partial

import pytest

from tests.chaos.conftest import MakeFleet
from tests.chaos.faults import FAULTS, NETWORK
from tests.chaos.fleet import CONSTANTS, Fleet
from tests.chaos.http_faults import Verdict
from tests.chaos.invariants import check
from tests.chaos.proxy import Blackhole, Pass
from tests.chaos.work import work

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TIMES = 3


def suffer(fleet: Fleet, name: str, times: int = TIMES) -> None:
    """The same fault several times, while there is work."""
    fleet.start(2)
    while len(fleet.injected) < times:
        fleet.submit(work(fleet.random, 48))
        fleet.progress(fleet.random.randrange(1, 30))
        FAULTS[name](fleet)
    fleet.finish()
    check(fleet)


@pytest.mark.parametrize("kind", NETWORK)
def test_connections_to_redis(make_fleet: MakeFleet, kind: str) -> None:
    with make_fleet(seed=100 + NETWORK.index(kind)) as fleet:
        suffer(fleet, f"redis_{kind}")


@pytest.mark.parametrize("kind", NETWORK)
def test_connections_to_the_store(make_fleet: MakeFleet, kind: str) -> None:
    with make_fleet(seed=110 + NETWORK.index(kind)) as fleet:
        suffer(fleet, f"store_{kind}")


@pytest.mark.parametrize("name", ["slow_down", "silence", "lose_answers"])
def test_answers_of_the_store(make_fleet: MakeFleet, name: str) -> None:
    with make_fleet(seed=120) as fleet:
        suffer(fleet, name, times=4)


@pytest.mark.parametrize("name", ["restart_redis", "kill_redis"])
def test_redis_goes_and_comes_back(make_fleet: MakeFleet, name: str) -> None:
    with make_fleet(seed=130) as fleet:
        suffer(fleet, name)


def test_the_store_never_answers(make_fleet: MakeFleet) -> None:
    """Nobody ends the silence but the worker's own time limit."""
    constants = {**CONSTANTS, "jobs.storage._REQUEST_SECONDS": "0.5"}
    with make_fleet(seed=121, constants=constants) as fleet:
        fleet.start(2)
        for _ in range(3):
            fleet.submit(work(fleet.random, 40))
            fleet.progress(5)
            fleet.note("silence for two requests")
            goal = fleet.requests.met + 2
            fleet.requests.next(2, Verdict.SILENCE)
            fleet.until(partial(asked, fleet, goal), "two requests")
        fleet.finish()
        check(fleet)


def asked(fleet: Fleet, requests: int) -> bool:
    """Whether so many requests have met their fault; there is always one more job to ask for."""
    if not fleet.unfinished():
        fleet.submit(work(fleet.random, 8))
    return fleet.requests.met >= requests


def test_redis_is_gone_for_longer_than_any_of_its_time_limits(make_fleet: MakeFleet) -> None:
    with make_fleet(seed=101) as fleet:
        fleet.start(2)
        fleet.submit(work(fleet.random, 60))
        fleet.progress(10)
        fleet.note("blackhole Redis for eight seconds")
        fleet.redis.set(Blackhole())
        fleet.hold(8)
        fleet.redis.set(Pass())
        fleet.finish()
        check(fleet)
