"""Random scenarios by their seeds; `python -m tests.chaos` runs any number of others."""

import pytest

from tests.chaos.conftest import MakeFleet
from tests.chaos.faults import NETWORK
from tests.chaos.points import APART, worked
from tests.chaos.scenarios import plan, run
from tests.chaos.tally import MINIMUM
from tests.chaos.test_network import TIMES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.parametrize("seed", range(1001, 1013))
def test_a_random_scenario(make_fleet: MakeFleet, seed: int) -> None:
    scenario = plan(seed)
    with make_fleet(seed, **scenario.settings) as fleet:
        run(scenario, fleet)


def test_a_seed_means_one_plan() -> None:
    assert plan(1001) == plan(1001)
    assert str(plan(1001)) != str(plan(1002))


def test_a_run_of_all_injects_enough() -> None:
    """What the tests beside this one wait for to strike, counted from the lists that they go by."""
    actions, sides = 3, 2
    at_calls = actions * sides * len([*worked(), *APART])
    on_the_network = TIMES * 2 * len(NETWORK)
    assert at_calls + on_the_network >= MINIMUM
