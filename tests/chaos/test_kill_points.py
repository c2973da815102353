"""A worker dies, sleeps, or loses an answer before and after each call that it makes to a service."""

import time
from collections.abc import Callable, Sequence

import pytest

from jobs.records import JobKeys, JobState
from tests.chaos.conftest import MakeFleet
from tests.chaos.faults import drain_worker, steal
from tests.chaos.fleet import LIMIT, Fleet
from tests.chaos.http_faults import Verdict
from tests.chaos.invariants import check, check_job, check_nothing_left, ensure
from tests.chaos.points import APART, NOT_A_WORKERS, STARTING, calls, points, worked
from tests.chaos.proxy import Delay, Pass
from tests.chaos.work import work

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_the_list_names_calls_that_there_are() -> None:
    assert NOT_A_WORKERS.keys() <= set(calls())
    assert APART.keys() <= set(calls())
    assert not NOT_A_WORKERS.keys() & APART.keys()


def suffer(fleet: Fleet, armed: Sequence[str], *, seconds: float = LIMIT) -> None:
    """Go on working until every fault has struck."""
    fleet.random.shuffle(chosen := list(armed))
    # Whoever lives on after its fault does not start again: what only a start comes to goes first.
    chosen.sort(key=lambda point: not point.startswith(STARTING))
    fleet.arm("worker", chosen)
    fleet.start(2)

    def struck() -> bool:
        if len(fleet.unfinished()) < 2:
            fleet.submit(work(fleet.random, 24))
            steal(fleet)  # whoever takes a shard over makes calls that the first did not
        return len(fleet.events.fired()) >= len(armed)

    fleet.until(struck, f"all of {armed} to strike", seconds=seconds)
    fleet.finish()
    check(fleet)
    assert sorted(fleet.events.fired()) == sorted(armed)


@pytest.mark.parametrize("half", [0, 1])
def test_a_worker_is_killed_before_and_after_each_call(make_fleet: MakeFleet, half: int) -> None:
    with make_fleet(seed=10 + half) as fleet:
        suffer(fleet, list(points(worked(), "kill"))[half::2])


def test_each_call_fails_once_and_loses_its_answer_once(make_fleet: MakeFleet) -> None:
    with make_fleet(seed=20) as fleet:
        suffer(fleet, list(points(worked(), "fail")))


@pytest.mark.parametrize("half", [0, 1])
def test_a_worker_sleeps_past_its_lease_before_and_after_each_call(make_fleet: MakeFleet, half: int) -> None:
    with make_fleet(seed=30 + half) as fleet:
        suffer(fleet, list(points(worked(), "stop"))[half::2])


def test_who_slept_after_a_claim_generates_nothing_that_is_done(make_fleet: MakeFleet) -> None:
    """Another has taken the shard over and committed it meanwhile: there are no checkpoints to be found."""
    with make_fleet(seed=35, shards_in_flight="1") as fleet:
        fleet.arm("worker", ["ledger.claim:after:1:stop"])
        fleet.submit(work(fleet.random, 8))
        (first,) = fleet.start(1)
        fleet.struck(1)
        fleet.tend()
        fleet.sleeps(first.pid, seconds=6)
        fleet.start(1)
        fleet.finish()
        fleet.until(lambda: "shard left" in first.log.read_text(), "the first to notice")
        check(fleet)
        late = [line for event in fleet.events.named("engine.ask") for line in event.ids if "/0/1/" in line]
        ensure(fleet, not late, f"asked for under a claim that had run out: {late}")


@pytest.mark.parametrize("action", ["kill", "fail", "stop"])
def test_around_the_calls_of_a_drain(make_fleet: MakeFleet, action: str) -> None:
    armed = list(points(["ledger.release", "ledger.withdraw", "ledger.close"], action))
    with make_fleet(seed=40, drain_seconds="0", shard_lines="16") as fleet:

        def drain() -> None:
            fleet.progress(3)
            drain_worker(fleet)

        until_struck(fleet, armed, drain)


@pytest.mark.parametrize("action", ["kill", "fail", "stop"])
def test_around_what_is_noted_of_a_store_that_fails(make_fleet: MakeFleet, action: str) -> None:
    armed = list(points(["ledger.note"], action))
    with make_fleet(seed=41) as fleet:

        def fail() -> None:
            fleet.progress(1)
            fleet.note("503 to every request")
            fleet.requests.share(1.0, Verdict.SLOW_DOWN, seed=41)
            noted = fleet.events.count("ledger.note", "before")
            fleet.until(lambda: fleet.events.count("ledger.note", "before") > noted, "a note")
            fleet.requests.clear()

        until_struck(fleet, armed, fail)


@pytest.mark.parametrize("action", ["kill", "fail", "stop"])
def test_around_the_words_of_a_slow_finalizer(make_fleet: MakeFleet, action: str) -> None:
    armed = list(points(["ledger.keep_finalizing"], action))
    with make_fleet(seed=42, constants={"worker.manifest.FINALIZE_SECONDS": "0.4"}) as fleet:

        def slow() -> None:
            fleet.store.set(Delay(0.06))
            fleet.progress(5)

        until_struck(fleet, armed, slow)


@pytest.mark.parametrize("action", ["kill", "fail", "stop"])
def test_around_the_search_for_a_line_that_kills_workers(make_fleet: MakeFleet, action: str) -> None:
    """Workers die before a line is finished, so often that lines are tried apart."""
    deaths = ["ledger.checkpoint:before:1:kill"] * 2
    armed = list(points(["ledger.suspect"], action))
    with make_fleet(seed=43, max_attempts="2", shard_lines="32", shards_in_flight="1") as fleet:
        fleet.arm("worker", deaths + armed)
        fleet.submit(work(fleet.random, 32))
        fleet.start(1)
        fleet.struck(len(deaths + armed))
        fleet.finish()
        check(fleet)


@pytest.mark.parametrize("action", ["kill", "fail", "stop"])
def test_around_calling_off_a_job_whose_input_is_gone(make_fleet: MakeFleet, action: str) -> None:
    armed = list(points(["ledger.call_off"], action))
    with make_fleet(seed=44, max_attempts="2") as fleet:
        fleet.arm("worker", armed)
        fleet.start(2)
        whole, gone = fleet.submit(work(fleet.random, 24)), []
        while len(fleet.events.fired()) < len(armed):
            gone.append(fleet.submit(work(fleet.random, 24)))
            fleet.note(f"delete the input of {gone[-1].id}")
            fleet.client.store.delete([JobKeys(gone[-1].id).input])
            fleet.until(lambda: len(fleet.unfinished()) < 2, "a job to end")
        fleet.finish()
        check_job(fleet, whole)
        for job in gone:
            status = fleet.client.status(job.id)
            if status.state is JobState.COMPLETED:  # it had been read before it was deleted
                check_job(fleet, job)
            else:
                ensure(fleet, status.state is JobState.FAILED, f"{job.id} is {status.state}")
        check_nothing_left(fleet)


def until_struck(fleet: Fleet, armed: Sequence[str], provoke: Callable[[], None]) -> None:
    """Work, and do what brings workers to the armed calls, until every fault has struck."""
    fleet.arm("worker", armed)
    fleet.start(2)
    limit = time.monotonic() + LIMIT
    while len(fleet.events.fired()) < len(armed):
        ensure(fleet, time.monotonic() < limit, f"not all of {armed} struck")
        if len(fleet.unfinished()) < 2:
            fleet.submit(work(fleet.random, 48))
        provoke()
    fleet.store.set(Pass())
    fleet.finish()
    check(fleet)
