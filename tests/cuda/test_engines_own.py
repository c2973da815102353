"""The engine's own tests (tests/devices.py) on the simulated GPU: a few, as the interpreter is slow."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import devices
from tests.cuda import card

ROOT = Path(__file__).parents[2]
CHOSEN = [
    f"tests/integration/test_engine_{test}"
    for test in (
        "golden.py::test_prefill_logits_equal_the_original[cuda-512-32-v2_gqa]",
        "requests.py::test_an_abort_at_any_moment_frees_what_it_held",
        "sampling.py::test_no_stop_token_before_min_tokens[cuda-2]",
        "sampling.py::test_penalized_and_plain_rows_do_not_meet",
    )
]


@pytest.mark.slow
@pytest.mark.skipif(card.REAL, reason="on a GPU they run as they are, all of them")
def test_the_engines_own_tests() -> None:
    """In a process that is simulated as a whole, as the ranks of a test are."""
    paths = (ROOT, ROOT / "tests" / "cuda" / "on_ranks", os.environ.get("PYTHONPATH", ""))
    environment = {**os.environ, devices.SIMULATED: "cuda", "PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", *CHOSEN]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    assert re.search(rf"{len(CHOSEN)} passed", done.stdout)
