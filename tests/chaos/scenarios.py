"""Random scenarios: a seed decides the fleet, its jobs, and which faults come after how many lines.

Owns the plan and its execution. All draws are made before anything runs, so that a seed always means the same
plan; what meets what within a process is up to the machine.
"""

import random
from dataclasses import dataclass
from typing import Final

from tests.chaos.faults import FAULTS, LOSSES
from tests.chaos.fleet import Fleet
from tests.chaos.injected.chaos_hooks import ABORTS
from tests.chaos.invariants import check
from tests.chaos.points import STARTING, worked
from tests.chaos.work import work

#: What a process may suffer at a call.
_ACTIONS: Final = ("kill", "fail", "stop")


@dataclass(frozen=True, slots=True)
class Step:
    """A fault, once so many lines more are answered."""

    lines: int
    #: Its name in the table of faults, or a point such as `ledger.commit:before:2:kill`.
    fault: str

    def __str__(self) -> str:
        return f"{self.fault} after {self.lines} lines"


@dataclass(frozen=True, slots=True)
class Plan:
    """A scenario."""

    seed: int
    workers: int
    settings: dict[str, str]
    #: Lines of each job, and whether one of them kills engines.
    jobs: tuple[tuple[int, bool], ...]
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        jobs = ", ".join(
            f"{lines} lines{' with a deadly one' if deadly else ''}" for lines, deadly in self.jobs
        )
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        steps = "; ".join(map(str, self.steps))
        return f"seed {self.seed}: {self.workers} workers ({settings}); jobs of {jobs}; {steps}"


def plan(seed: int) -> Plan:
    """What the seed means."""
    draws = random.Random(seed)  # noqa: S311 - chance, not secrecy
    names = [*FAULTS, *(LOSSES if draws.random() < 0.25 else ())]
    return Plan(
        seed=seed,
        workers=draws.choice((2, 2, 3)),
        settings={
            "shard_lines": str(draws.choice((3, 8, 16))),
            "shards_in_flight": str(draws.choice((1, 2, 4))),
            "max_num_seqs": str(draws.choice((2, 8, 32))),
            "lease_seconds": str(draws.choice((1, 1, 2))),
            "drain_seconds": str(draws.choice((0, 1, 30))),
        },
        jobs=tuple((draws.randrange(20, 90), draws.random() < 0.2) for _ in range(draws.randrange(1, 4))),
        steps=tuple(
            Step(draws.randrange(1, 20), _point(draws) if draws.random() < 0.3 else draws.choice(names))
            for _ in range(draws.randrange(5, 11))
        ),
    )


def _point(draws: random.Random) -> str:
    call = draws.choice([call for call in worked() if call not in STARTING])
    return f"{call}:{draws.choice(('before', 'after'))}:{draws.randrange(1, 4)}:{draws.choice(_ACTIONS)}"


def run(scenario: Plan, fleet: Fleet) -> None:
    """Do it, and check what must hold."""
    fleet.start(scenario.workers)
    for lines, deadly in scenario.jobs:
        fleet.submit(work(fleet.random, lines, deadly=[ABORTS] if deadly else []))
    for step in scenario.steps:
        if not fleet.unfinished():
            fleet.submit(work(fleet.random, 40))
        fleet.progress(step.lines)
        if ":" in step.fault:
            fleet.arm("worker", [step.fault])
        else:
            {**FAULTS, **LOSSES}[step.fault](fleet)
    fleet.finish()
    check(fleet)
