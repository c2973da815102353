"""`python -m tests.chaos --seed S --runs N`: random scenarios, each told before it runs.

Stops at the first that fails, keeps its folder and says its seed, which runs it again.
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.fleet import Services, fleet
from tests.chaos.invariants import generated_twice
from tests.chaos.scenarios import plan, run
from tests.services import s3_server, valkey_server


def main() -> int:
    """Exit status 1 after a failure."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="the first seed; the others follow (default 1)")
    parser.add_argument("--runs", type=int, default=10, help="how many scenarios (default 10)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin none after so long")
    parser.add_argument("--folder", type=Path, help="where data and logs go (default: a temporary folder)")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="longhaul-chaos-", dir=given.folder))
    seeds = range(given.seed, given.seed + given.runs)
    with valkey_server(folder / "valkey") as valkey, s3_server(folder / "s3") as s3:
        passed = series(Services(valkey, s3), folder, seeds, given.seconds)
    if passed:
        shutil.rmtree(folder)
    return int(not passed)


def series(services: Services, folder: Path, seeds: range, seconds: float) -> bool:
    """One scenario after another; whether all passed."""
    faults = runs = twice = 0
    began = time.monotonic()
    for seed in seeds:
        if time.monotonic() - began > seconds:
            break
        scenario = plan(seed)
        tell(str(scenario))
        made = fleet(services, folder / f"seed-{seed}", seed, scenario.settings)
        try:
            with made.running():
                run(scenario, made)
        except Exception as error:  # noqa: BLE001 - whatever it is, the seed has to be said
            tell(f"FAILED: {error}\nAgain: python -m tests.chaos --seed {seed} --runs 1")
            return False
        runs, faults, twice = runs + 1, faults + made.faults, twice + generated_twice(made)
        shutil.rmtree(made.folder)
    tell(
        f"chaos: {faults} faults injected in {runs} scenarios, {time.monotonic() - began:.0f} s, none failed"
    )
    tell(f"chaos: {twice} lines were answered twice, as an engine, a worker or a lease had died with them")
    return True


def tell(text: str) -> None:
    """One message on standard output, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
