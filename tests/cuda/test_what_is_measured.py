"""benchmarks/gpu.py without a GPU: what it says, and that its floors count what a step has to do."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from model import LLM
from tests.golden import reference

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: it would be measured")
def test_it_says_that_there_is_no_gpu() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "finds no GPU: nothing was measured" in done.stderr


def test_floors_are_of_weights_and_cache() -> None:
    """Two prompts of 10 in one step, then two steps of two tokens each."""
    golden = reference.load("v2_gqa")
    with LLM(golden.folder, num_threads=1, prefix_caching=False) as llm:
        seconds, steps = gpu.timed(llm, [[7] * 10, [9] * 10], 3)
    assert 0 < steps.decode.seconds + steps.prefill.seconds <= seconds
    assert (steps.prefill.tokens, steps.decode.tokens) == (20, 4)
    model = golden.model
    layer = 128 * (8 + 2 * 2) * 16 + 128 * 128 + 3 * 128 * 320 + 2 * 128
    weights = model.num_layers * layer + 128 + 512 * 128
    token = 2 * model.num_layers * 2 * 16 * 2
    assert steps.decode.bytes == 2 * weights * 2 + (2 * 11 + 2 * 12) * token
    products = 2 * (weights - 512 * 128) * 20 + 2 * 512 * 128 * 2
    assert steps.prefill.operations == products + 4 * model.num_layers * 128 * 2 * 55


def test_a_line_for_each_workload() -> None:
    work = vars(gpu.Work(seconds=2.0, tokens=1, bytes=3e12, operations=4e14))
    ours = {"a": {"seconds": 4.0, "decode": work, "prefill": work}}
    (line,) = gpu.table("internlm2-7b", ours, {"a": {"seconds": 12.0}}, (2e12, 5e14))
    assert "decode  75% of floor   prefill  40%   vs transformers 3.00x" in line
    assert gpu.table("internlm2-7b", ours, {}, (2e12, 5e14))[0].endswith("vs transformers -")
