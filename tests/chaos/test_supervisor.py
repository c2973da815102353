"""The supervisor is killed: its workers notice, and another supervisor goes on."""

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import psutil
import pytest

from tests.chaos.conftest import MakeFleet
from tests.chaos.fleet import Fleet
from tests.chaos.invariants import check
from tests.chaos.work import work
from tests.chaos.workers import kill_ours
from tests.services import kill, spawn

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@contextmanager
def supervised(fleet: Fleet, name: str) -> Iterator[psutil.Process]:
    """`worker up` with two groups."""
    environment = fleet.worker_environment() | {"LONGHAUL_DEVICE_GROUPS": "echo:0;echo:1"}
    log = fleet.folder / f"{name}.log"
    process = spawn([sys.executable, "-m", "worker", "up"], log=log, environment=environment)
    try:
        yield psutil.Process(process.pid)
    finally:
        children = {child.pid for child in children_of(process.pid)}
        kill(process)
        kill_ours(children, fleet.folder)


def children_of(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children()
    except psutil.NoSuchProcess:
        return []


@pytest.mark.parametrize("grace", ["0", "30"])
def test_the_supervisor_is_killed(make_fleet: MakeFleet, grace: str) -> None:
    """Its workers hand back or finish, by their grace, and end."""
    with make_fleet(seed=80, drain_seconds=grace) as fleet:
        for turn in range(2):
            fleet.submit(work(fleet.random, 60))
            with supervised(fleet, f"supervisor-{turn}") as process:
                fleet.progress(10)
                workers = process.children()
                assert len(workers) == 2
                fleet.note("kill the supervisor")
                process.kill()
                fleet.until(partial(all_ended, workers), "its workers to end")
        with supervised(fleet, "last"):
            fleet.finish()
            check(fleet)


def test_a_machine_dies(make_fleet: MakeFleet) -> None:
    """The supervisor and its workers at once; nobody says anything any more."""
    with make_fleet(seed=81) as fleet:
        for turn in range(2):
            fleet.submit(work(fleet.random, 60))
            with supervised(fleet, f"supervisor-{turn}") as process:
                fleet.progress(10)
                fleet.note("kill the supervisor and its workers")
                for each in [process, *process.children()]:
                    each.send_signal(signal.SIGKILL)
        with supervised(fleet, "last"):
            fleet.finish()
            check(fleet)


def test_a_worker_under_a_supervisor_is_killed(make_fleet: MakeFleet) -> None:
    with make_fleet(seed=82) as fleet, supervised(fleet, "supervisor") as process:
        for _ in range(2):
            fleet.submit(work(fleet.random, 60))
            fleet.until(lambda: len(process.children()) == 2, "both workers")
            fleet.progress(10)
            fleet.note("kill a worker")
            fleet.random.choice(process.children()).kill()
        fleet.finish()
        check(fleet)


def all_ended(processes: Sequence[psutil.Process]) -> bool:
    """Whether none runs; one that waits to be buried does not."""
    return not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in processes)
