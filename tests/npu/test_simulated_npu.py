"""The NPU device on simulated chips: each part of tests/npu/simulated in a process with the real torch_npu.

Such a process is a pytest of its own, since torch_npu must be loaded before anything else and would then
serve every other test. What it checks is the calls, not an NPU's numerics or speed: no card is involved.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from model import LLM
from model.cli import app
from model.errors import ConfigError
from tests import devices
from tests.golden import reference
from tests.npu import environment
from tests.npu.environment import CHIPS, ROOT

SIMULATED = Path(__file__).parent / "simulated"

#: Nothing is emulated, and no thread of torch_npu's calls what another has told it to, in whatever order.
_TRACED = {"SIM_NPU_EMULATE": "", "TASK_QUEUE_ENABLE": "0"}
#: Parts, and what their process is given beyond the chip.
PARTS = {
    "check_operations": {},
    "check_misuse": {},
    "check_device": {},
    "check_engine": {},
    "check_graphs": {"SIM_NPU_FLOAT32": "1"},
    "check_ranks": {"SIM_NPU_FLOAT32": "1"},
    "check_dtypes": {},
    "check_calls": _TRACED,
    "check_doctor": {},
    "check_int8": {},
    "check_int8_tokens": {"SIM_NPU_FLOAT32": "1"},
    "check_int8_calls": _TRACED,
}


def simulated(chip: str) -> dict[str, str]:
    """The environment, or the test is skipped."""
    try:
        return environment.variables(chip)
    except environment.Unavailable as error:
        pytest.skip(f"no simulated NPU: {error}")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("chip", CHIPS)
def test_on_a_simulated_chip(chip: str, part: str) -> None:
    passes(chip, [str(SIMULATED / f"{part}.py")], PARTS[part])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("chip", CHIPS)
def test_the_engines_own_tests(chip: str) -> None:
    """The whole engine, in a float32 that no chip has: a difference is none of rounding."""
    passes(chip, [*devices.SELECTED], {"SIM_NPU_FLOAT32": "1"})


def passes(chip: str, chosen: list[str], given: dict[str, str]) -> None:
    """Run these tests in a process of their own."""
    environment = {**simulated(chip), **given}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    command += ["-o", "filterwarnings=default", "--disable-warnings", *chosen]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    last = (done.stdout.strip().splitlines() or [""])[-1]
    print(f"simulated {chip}, {chosen[-1]}: {last}")
    assert done.returncode == 0, f"on a simulated {chip}:\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    assert re.search(r"\d+ passed", last)


def test_a_machine_without_torch_npu() -> None:
    """Here torch_npu is not installed, which is what the engine and the doctor say."""
    with pytest.raises(ConfigError, match="device npu needs torch_npu"):
        LLM(reference.load("v2_gqa").folder, device="npu")
    done = CliRunner().invoke(app, ["doctor", "--device", "npu"])
    assert done.exit_code == 1
    assert "error[invalid_settings]: device npu needs torch_npu" in done.output


def test_an_incomplete_cann_is_named() -> None:
    """torch_npu is installed, and set_env.sh was not sourced."""
    done = subprocess.run(
        [sys.executable, "-m", "model.cli", "doctor"],
        cwd=ROOT,
        env={**simulated("910B"), "ASCEND_HOME_PATH": str(environment.LIBRARIES)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "error[invalid_settings]: device npu needs torch_npu" in done.stderr
    assert "ASCEND_OPP_PATH" in done.stderr


def test_every_part_is_run() -> None:
    assert {path.stem for path in SIMULATED.glob("check_*.py")} == PARTS.keys()
