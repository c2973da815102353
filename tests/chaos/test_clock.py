"""The wall clock jumps an hour ahead and back: of Redis, by which leases are measured, and of workers."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.chaos.clock import Clock, build, compiler
from tests.chaos.conftest import MakeFleet
from tests.chaos.faults import kill_worker
from tests.chaos.fleet import Fleet
from tests.chaos.invariants import check
from tests.chaos.work import work
from tests.services import Valkey

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(compiler() is None, reason="no C compiler here to make a clock with"),
]

HOUR = 3600.0


@dataclass(frozen=True)
class MovedRedis:
    """A Valkey that goes by a clock of its own."""

    valkey: Valkey
    clock: Clock

    def jump(self, fleet: Fleet, offset: float) -> None:
        """Set its clock; returns when it has noticed."""
        fleet.note(f"the clock of Redis is {offset:+.0f} s off")
        self.clock.set(offset)
        with self.valkey.client() as client:
            fleet.until(lambda: abs(client.time()[0] - time.time() - offset) < HOUR / 60, "Redis to notice")


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[MovedRedis]:
    clock = Clock(build(tmp_path), tmp_path / "clock")
    server = Valkey(folder=tmp_path)
    with pytest.MonkeyPatch.context() as patched:
        for name, value in clock.environment.items():
            patched.setenv(name, value)
        server.start()
    yield MovedRedis(server, clock)
    server.stop()


@pytest.mark.parametrize("jumps", [(HOUR, 2 * HOUR), (-HOUR, -2 * HOUR), (HOUR, 0.0)])
def test_the_clock_of_redis_jumps(make_fleet: MakeFleet, redis: MovedRedis, jumps: tuple[float, ...]) -> None:
    """A worker dies before each jump: what it held must not stay its own for an hour."""
    with make_fleet(seed=60, valkey=redis.valkey) as fleet:
        fleet.start(2)
        for offset in jumps:
            fleet.submit(work(fleet.random, 40))
            fleet.progress(10)
            kill_worker(fleet)
            redis.jump(fleet, offset)
            fleet.progress(3)
            kill_worker(fleet)
        fleet.finish()
        check(fleet)


@pytest.mark.parametrize("offset", [HOUR, -HOUR])
def test_a_dead_workers_lease_outlives_no_jump(
    make_fleet: MakeFleet, redis: MovedRedis, offset: float
) -> None:
    """The jump comes while nobody lives who could renew anything."""
    with make_fleet(seed=61, valkey=redis.valkey) as fleet:
        (worker,) = fleet.start(1)
        fleet.submit(work(fleet.random, 40))
        fleet.progress(10)
        worker.resting = True
        kill_worker(fleet)
        fleet.until(lambda: worker.dead, "the worker to be dead")
        redis.jump(fleet, offset)
        worker.resting = False
        fleet.finish()
        check(fleet)


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
def test_the_clock_of_one_worker_jumps(make_fleet: MakeFleet, tmp_path: Path, jump: float) -> None:
    clock = Clock(build(tmp_path), tmp_path / "clock")
    with make_fleet(seed=62) as fleet:
        fleet.start(1, **clock.environment)
        fleet.start(1)
        for offset in (jump, 0.0):
            fleet.submit(work(fleet.random, 40))
            fleet.progress(10)
            fleet.note(f"the clock of worker 0 is {offset:+.0f} s off")
            clock.set(offset)
            fleet.progress(10)
            kill_worker(fleet)
        fleet.finish()
        check(fleet)
