"""The same with the small real model: engines that hold weights, and ranks that need one another."""

import os
import signal
from contextlib import AbstractContextManager
from pathlib import Path

import psutil
import pytest

from tests.chaos.conftest import MakeFleet
from tests.chaos.faults import kill_worker
from tests.chaos.fleet import Fleet
from tests.chaos.invariants import check
from tests.chaos.work import real_work
from tests.chaos.workers import Worker, send

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

LIMIT = 120.0


def real(
    make_fleet: MakeFleet, seed: int, model: Path, groups: str, **more: str
) -> AbstractContextManager[Fleet]:
    """A fleet that serves the model; a step of it takes longer than an echo's."""
    given = {"device_groups": groups, "model": str(model), "kv_cache_bytes": str(128 * 1024 * 1024)}
    return make_fleet(seed, **given, engine_hang_seconds="10", lease_seconds="3", **more)


def busy(fleet: Fleet, lines: int) -> None:
    """Wait until so many lines are answered, the model having been loaded."""
    fleet.until(lambda: fleet.events.answered >= lines, f"{lines} lines", seconds=LIMIT)


def test_a_worker_is_killed(make_fleet: MakeFleet, smollm2: Path) -> None:
    """The other takes over what is not checkpointed."""
    with real(make_fleet, 90, smollm2, "cpu:0") as fleet:
        fleet.start(2)
        fleet.submit(real_work(fleet.random, 24))
        busy(fleet, 5)
        kill_worker(fleet)
        fleet.finish(seconds=LIMIT)
        check(fleet)


@pytest.mark.parametrize(
    ("rank", "number"), [(1, signal.SIGKILL), (0, signal.SIGSTOP)], ids=["killed", "hung"]
)
def test_one_rank_of_two(make_fleet: MakeFleet, smollm2: Path, rank: int, number: signal.Signals) -> None:
    """The engine goes with the rank, and comes back whole."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("two ranks need two CPUs")
    with real(make_fleet, 91, smollm2, "cpu:0-1", tensor_parallel_size="2") as fleet:
        (worker,) = fleet.start(1)
        fleet.submit(real_work(fleet.random, 12))
        busy(fleet, 3)
        fleet.note(f"{number.name} to rank {rank}")
        assert send(ranks(worker)[rank], number)
        fleet.finish(seconds=LIMIT)
        check(fleet)
        assert worker.log.read_text().count('"engine ready"') == 2


def ranks(worker: Worker) -> list[int]:
    """The engine's ranks in the order of their starts: rank 0 starts the others."""
    programs = ("worker.engine_main", "model.runner")
    engine = [pid for pid in worker.engines() if any(name in command(pid) for name in programs)]
    assert len(engine) == 2, [command(pid) for pid in worker.engines()]
    return engine


def command(pid: int) -> str:
    return " ".join(psutil.Process(pid).cmdline())
