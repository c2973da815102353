"""Which of CANN's functions a step with int8 weights ends in, per chip, as in check_calls.py."""

import pytest
import torch

from model.devices.npu_chips import this_chip
from tests.npu.simulated.check_calls import STEPS, equal_the_snapshot, runner_of, traced
from tests.npu.tiny import tiny_checkpoint

SCHEME = {"910B": "w8a8", "310P": "w8a16"}[this_chip().name]
#: What a projection ends in. That it is the product for weights in FRACTAL_NZ tells how the weight lies.
OPERATIONS = {
    "w8a8": ["aclnn DynamicQuantV2", "aclnn QuantMatmulWeightNz"],
    "w8a16": ["aclnn WeightQuantBatchMatmulV2"],
}


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Of a prompts' step and of a decode step, the second of its kind."""
    folder = tmp_path_factory.mktemp("model")
    runner = runner_of(tiny_checkpoint(folder / "tiny"), quantization=SCHEME)
    found = {}
    for name in ("prefill", "decode"):
        runner.lead(STEPS[name])
        torch.npu.synchronize()
        with traced(folder / "trace") as found[name]:
            runner.lead(STEPS[name])
            torch.npu.synchronize()
    return found


@pytest.mark.parametrize("name", ["prefill", "decode"])
def test_the_calls_of_a_step(calls: dict[str, list[str]], name: str) -> None:
    equal_the_snapshot(f"{SCHEME}-{name}", calls[name])


@pytest.mark.parametrize("name", ["prefill", "decode"])
def test_each_projection_is_int8(calls: dict[str, list[str]], name: str) -> None:
    """Two layers of four projections, and the head in float16."""
    for operation in OPERATIONS[SCHEME]:
        assert calls[name].count(operation) == 2 * 4, sorted(set(calls[name]))
    assert sum(call.startswith(("aclnn Matmul", "aclnn Mm", "aclnn Addmm")) for call in calls[name]) == 1
