"""Processes that die or stand still: workers, engines, and what supervises them."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.dialogue import ENGINE_ERROR
from tests.chaos.clock import Clock, build, compiler
from tests.chaos.conftest import MakeFleet
from tests.chaos.faults import FAULTS, kill_worker, steal
from tests.chaos.injected.chaos_hooks import KILLS_WORKERS
from tests.chaos.invariants import check, generated_twice
from tests.chaos.work import DEADLY, Line, Work, work
from tests.chaos.workers import send

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_where_nothing_happens_nothing_is_done_twice(make_fleet: MakeFleet) -> None:
    with make_fleet(seed=1) as fleet:
        fleet.start(2)
        fleet.submit(work(fleet.random, 100))
        fleet.finish()
        check(fleet)
        assert fleet.faults == 0
        assert generated_twice(fleet) == 0


@pytest.mark.parametrize(
    "name",
    [
        "kill_worker",
        "kill_engine",
        "hang_engine",
        "suspend_worker",
        "drain_worker",
        "steal",
        "double_hints",
        "lose_hints",
    ],
)
def test_the_same_again_and_again(make_fleet: MakeFleet, name: str) -> None:
    with make_fleet(seed=2, shard_lines="16") as fleet:
        fleet.start(2)
        while len(fleet.injected) < 4:
            fleet.submit(work(fleet.random, 48))
            fleet.progress(fleet.random.randrange(1, 30))
            FAULTS[name](fleet)
        fleet.finish()
        check(fleet)


def test_two_workers_on_one_shard_and_the_late_one_is_refused(make_fleet: MakeFleet) -> None:
    with make_fleet(seed=7, shard_lines="32") as fleet:
        fleet.start(2)
        while len(fleet.injected) < 4:
            fleet.submit(work(fleet.random, 64))
            fleet.progress(fleet.random.randrange(5, 20))
            steal(fleet)
        fleet.finish()
        check(fleet)
        lost = [event for event in fleet.events.all() if event.error == "LeaseLostError"]
        assert lost or any(event.result is None for event in fleet.events.named("ledger.renew", "after"))


def test_a_message_of_a_dead_worker_comes_back_and_is_dropped(make_fleet: MakeFleet, tmp_path: Path) -> None:
    """Its visibility timeout is an hour: another worker lives in a later one.

    The store is a folder: S3 refuses whose clock is off.
    """
    if compiler() is None:
        pytest.skip("no C compiler here to make a clock with")
    clock = Clock(build(tmp_path), tmp_path / "clock")
    clock.set(7200)
    with make_fleet(seed=8, store_url=f"file://{tmp_path}/store") as fleet:
        (worker,) = fleet.start(1)
        fleet.submit(work(fleet.random, 40))
        fleet.progress(5)
        worker.resting = True
        kill_worker(fleet)
        fleet.start(1, **clock.environment)
        fleet.finish()
        with fleet.services.valkey.client() as redis:
            fleet.until(lambda: not redis.exists(f"{fleet.prefix}:unacked"), "its messages to come back")
        check(fleet)


@pytest.mark.parametrize("action", ["kill", "stop"])
def test_an_engine_ends_around_its_answers(make_fleet: MakeFleet, action: str) -> None:
    """Before an answer goes out, after it did, in the middle of sending it, and when it is asked."""
    places = ["engine.ask:after", "engine.answer:before", "engine.answer:after"]
    armed = [f"{place}:{calls}:{action}" for place in places for calls in (1, 5)]
    if action == "kill":
        armed += [f"engine.answer:within:{calls}:kill" for calls in (1, 2, 5)]
    with make_fleet(seed=3) as fleet:
        fleet.random.shuffle(armed)
        fleet.start(2)
        for struck, point in enumerate(armed, start=1):
            fleet.submit(work(fleet.random, 32))
            fleet.arm("engine", [point])
            fleet.struck(struck)
            fleet.progress(12)  # a line in too many engines that died one after another would be to blame
        fleet.finish()
        check(fleet)


_HOLDER = """
import fcntl, signal, sys
signal.signal(signal.SIGCONT, lambda *_: sys.exit())
fcntl.flock(file := open(sys.argv[1], "a"), fcntl.LOCK_EX)
print("held", flush=True)
signal.pause()
"""


def test_who_is_suspended_with_the_list_of_faults_in_hand_is_woken(make_fleet: MakeFleet) -> None:
    with make_fleet(seed=9) as fleet:
        command = [sys.executable, "-c", _HOLDER, str(fleet.folder / "points.worker")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            send(holder.pid, signal.SIGSTOP)
            fleet.sleeps(holder.pid, seconds=0.2)
            fleet.arm("worker", ["ledger.claim:before:1:kill"])
        assert holder.returncode == 0


@pytest.mark.parametrize("word", DEADLY)
def test_a_deadly_line_costs_itself_alone(make_fleet: MakeFleet, word: bytes) -> None:
    with make_fleet(seed=4) as fleet:
        fleet.start(2)
        fleet.submit(work(fleet.random, 20, deadly=[word, word]))
        fleet.submit(work(fleet.random, 20))
        fleet.finish()
        check(fleet)
        assert fleet.events.fired()


def test_a_line_that_kills_workers_costs_itself_alone(make_fleet: MakeFleet) -> None:
    with make_fleet(seed=6, max_attempts="2", shards_in_flight="1") as fleet:
        fleet.start(2)
        fleet.submit(work(fleet.random, 20, deadly=[KILLS_WORKERS]))
        fleet.submit(work(fleet.random, 20))
        fleet.finish()
        check(fleet)
        assert fleet.events.fired()


def test_a_line_that_kills_workers_costs_no_line_of_a_job_beside_it(make_fleet: MakeFleet) -> None:
    """No innocent line is ever finished before the worker dies: they share its deaths, and not its guilt."""
    deadly = Line(KILLS_WORKERS.decode(), error=ENGINE_ERROR)
    innocent = tuple(Line(f"{number} " + 80 * ".") for number in range(8))
    with make_fleet(seed=5, max_attempts="2", max_num_seqs="32") as fleet:
        fleet.submit(Work((deadly, *innocent[1:])))
        fleet.submit(Work(innocent))
        fleet.start(1)
        fleet.finish()
        check(fleet)
