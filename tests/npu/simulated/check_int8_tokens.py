"""The whole engine with int8 weights on a simulated chip, in float32, which no chip has.

w8a16 gives the tokens of the CPU's engine on a checkpoint whose projections were quantized and multiplied out
before: by numpy, in as many slices as ranks. w8a8 gives those of the CPU's engine with projections by the
formula, up to the steps of activations that rounding decides.
"""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model import LLM, Completion, SamplingParams
from model.devices import Projection
from model.devices.npu_chips import this_chip
from model.layers import Loader
from tests import int8_formula
from tests.golden import reference
from tests.npu import emulation

GREEDY = SamplingParams(max_tokens=reference.GENERATED, temperature=0, ignore_eos=True, logprobs=5)
SIZES = {"max_model_len": 256, "kv_cache_bytes": 2**26, "num_threads": 1, "dtype": "float32"}
STEPS = {"max_step_tokens": 40, "max_num_seqs": 8}
#: Differences of log-probabilities: of float32, and of one activation that is a step higher or lower.
_ROUNDING, _A_STEP = 1e-4, 0.15
ON_A2 = this_chip().name == "910B"


def generated(folder: Path, prompts: list[list[int]], **options: Any) -> list[Completion]:
    with LLM(folder, **{**SIZES, **STEPS, **options}) as llm:
        return llm.generate(prompts, GREEDY)


def tokens(completions: list[Completion]) -> list[list[int]]:
    return [list(one.token_ids) for one in completions]


@pytest.mark.parametrize(("world", "attention"), [(1, "paged"), (1, "flash"), (2, "paged")])
@pytest.mark.parametrize(
    "name", ["v2_gqa", *(pytest.param(name, marks=pytest.mark.shared) for name in ("v1_bias", "v3_dyn"))]
)
def test_w8a16_gives_the_tokens_of_a_quantized_checkpoint(
    name: str, world: int, attention: str, tmp_path: Path
) -> None:
    golden = reference.load(name)
    copy = int8_formula.quantized_copy(golden.folder, tmp_path / "copy", world)
    expected = tokens(generated(copy, golden.prompts))
    before = emulation.current[0].calls.copy()
    options = {"device": "npu", "quantization": "w8a16", "attention": attention}
    found = generated(golden.folder, golden.prompts, tensor_parallel_size=world, **options)
    assert tokens(found) == expected
    used = emulation.current[0].calls - before
    norms = used["npu::npu_rms_norm"] + used["npu::npu_add_rms_norm"]
    # A step has a norm before each pair of projections of each layer, and one at its end.
    steps = used["npu::npu_rms_norm"]
    assert used["npu::npu_weight_quant_batchmatmul"] == 2 * (norms - steps)


@pytest.mark.skipif(not ON_A2, reason="the 910B quantizes activations")
@pytest.mark.parametrize("world", [1, 2])
def test_w8a8_gives_the_tokens_of_the_formula(world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = reference.load("v2_gqa")
    options = {"device": "npu", "quantization": "w8a8", "tensor_parallel_size": world}
    before = emulation.current[0].calls.copy()
    found = generated(golden.folder, golden.prompts, **options)
    used = emulation.current[0].calls - before
    assert used["npu::npu_quant_matmul"] == used["npu::npu_dynamic_quant"] > 0
    monkeypatch.setattr("model.runner.load_device", lambda _: int8_formula.DEVICE)
    monkeypatch.setattr(Loader, "split_by_columns", in_slices(world))
    expected = generated(golden.folder, golden.prompts, quantization="w8a8")
    equal_but_for_ties(found, expected)


def in_slices(world: int) -> Callable[..., Projection]:
    """On one rank what several do: weights and activations of each slice have scales of their own."""
    whole = Loader.split_by_columns

    def split(load: Loader, name: str, columns: int, part: tuple[int, int], *, bias: bool) -> Projection:
        width = (part[1] - part[0]) // world
        slices = [slice(first, first + width) for first in range(*part, width)]
        projections = [
            whole(load, name, columns, (own.start, own.stop), bias=bias and own.start == 0) for own in slices
        ]
        return lambda x: sum(project(x[:, own]) for project, own in zip(projections, slices, strict=True))  # type: ignore[return-value]

    return split


def equal_but_for_ties(found: list[Completion], expected: list[Completion]) -> None:
    """The same tokens with the same log-probabilities, up to where an activation's last bit decided its step.

    That is rare, and changes what follows: by less than `_A_STEP`, which in a model as small as this is much.
    """
    gaps = []
    for one, other in zip(found, expected, strict=True):
        for token, own, record in zip(one.token_ids, one.logprobs or (), other.logprobs or (), strict=True):
            if token != record.token_id:
                assert dict(record.top)[token] > record.logprob - _A_STEP
                break
            gaps.append(abs(own.logprob - record.logprob))
    assert max(gaps) < _A_STEP
    assert statistics.median(gaps) < _ROUNDING
