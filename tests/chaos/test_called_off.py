"""A job is called off while the fleet suffers: what is finished stays, nothing new is begun, and it ends."""

import pytest

from tests.chaos.conftest import MakeFleet
from tests.chaos.faults import FAULTS, LOSSES
from tests.chaos.invariants import check_called_off, check_job, check_nothing_left, check_work
from tests.chaos.work import work

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ALL = {**FAULTS, **LOSSES}


@pytest.mark.parametrize(
    "name", ["kill_worker", "suspend_worker", "kill_redis", "store_reset", "slow_down", "flush_redis"]
)
def test_a_job_is_called_off_amid_faults(make_fleet: MakeFleet, name: str) -> None:
    with make_fleet(seed=140) as fleet:
        fleet.start(2)
        unwanted = []
        for _ in range(2):
            fleet.submit(work(fleet.random, 24))
            unwanted.append(fleet.submit(work(fleet.random, 80)))
            fleet.progress(fleet.random.randrange(5, 30))
            fleet.client.cancel(unwanted[-1].id)
            ALL[name](fleet)
        fleet.finish()
        for job in fleet.jobs:
            (check_called_off if job in unwanted else check_job)(fleet, job)
        check_nothing_left(fleet)
        check_work(fleet)
