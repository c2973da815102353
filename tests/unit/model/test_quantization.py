"""int8 weights: how far they are off, which of a model become so, and who refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from model import LLM, Completion, SamplingParams
from model.config import DeviceName, EngineConfig, Int8Scheme, ModelConfig
from model.errors import CheckpointError, ConfigError
from model.quantization import quantize
from model.runner import Runner
from tests import int8_formula
from tests.golden import reference

GREEDY = SamplingParams(max_tokens=reference.GENERATED, temperature=0, ignore_eos=True, prompt_logprobs=0)
OPTIONS = {"dtype": "float32", "max_model_len": 256, "num_threads": 1}

rows = st.integers(0, 2**32 - 1).map(
    lambda seed: torch.randn(6, 24, generator=torch.Generator().manual_seed(seed))
)
#: Of each row, by which power of two it is multiplied: down to where float16 has no numbers left.
powers = st.lists(st.integers(-30, 12), min_size=6, max_size=6)
dtypes = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])


@given(drawn=rows, powers=powers, own=dtypes, scale_dtype=dtypes)
def test_a_weight_is_off_by_half_its_scale_at_most(
    drawn: Tensor, powers: list[int], own: torch.dtype, scale_dtype: torch.dtype
) -> None:
    """By the scale that the product uses, in whatever dtype it has that."""
    weight = (drawn * torch.tensor(powers).exp2()[:, None]).to(own)
    values, scale = quantize(weight, scale_dtype)
    assert (values.dtype, scale.dtype) == (torch.int8, scale_dtype)
    assert int(values.min()) >= -127
    error = (values.double() * scale.double()[:, None] - weight.double()).abs()
    assert bool((error <= scale.double()[:, None] * (0.5 + 1e-5)).all())


@given(drawn=rows, own=dtypes)
def test_integers_and_scales_are_the_formulas(drawn: Tensor, own: torch.dtype) -> None:
    weight = drawn.to(own)
    values, scale = quantize(weight, torch.float32)
    expected, expected_scale = int8_formula.integers(weight.float().numpy())
    np.testing.assert_array_equal(values.numpy(), expected)
    np.testing.assert_array_equal(scale.numpy(), expected_scale[:, 0])
    assert bool((values.abs().amax(1) == 127).all()), "the whole range is used"


def test_a_row_of_zeros_stays_so() -> None:
    values, scale = quantize(torch.tensor([[0.0, 0.0], [0.0, -127.0]]), torch.float16)
    assert values.tolist() == [[0, 0], [0, -127]]
    assert scale.tolist() == [1, 1]


def test_a_scale_is_never_subnormal() -> None:
    _, scale = quantize(torch.full((1, 4), 1e-6), torch.float16)
    assert scale.item() == torch.finfo(torch.float16).tiny


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_refused(wrong: float) -> None:
    weight = torch.ones(2, 3)
    weight[1, 2] = wrong
    with pytest.raises(CheckpointError, match="not finite"):
        quantize(weight, torch.float32)


@pytest.mark.parametrize("scheme", ["w8a16", "w8a8"])
def test_the_cpu_refuses(scheme: str) -> None:
    folder = reference.load("v2_gqa").folder
    with pytest.raises(ConfigError, match="device cpu does not multiply by int8 weights: set quantization"):
        LLM(folder, quantization=scheme)


def test_a_scheme_that_there_is_not() -> None:
    with pytest.raises(ConfigError, match="quantization must be one of none, w8a16, w8a8, not 'int4'"):
        EngineConfig(path=Path(), quantization="int4")  # type: ignore[arg-type]


@pytest.fixture
def formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU has int8 products, by the formula."""

    def load(name: DeviceName) -> object:
        assert name == "cpu"
        return int8_formula.DEVICE

    monkeypatch.setattr("model.runner.load_device", load)


@pytest.mark.usefixtures("formula")
@pytest.mark.parametrize(
    "name", ["v2_gqa", *(pytest.param(name, marks=pytest.mark.shared) for name in ("v1_bias", "v3_dyn"))]
)
def test_the_engine_quantizes_each_projection_and_nothing_else(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With biases too: a checkpoint whose projections were quantized before gives the same."""
    golden = reference.load(name)
    found = answered(golden.folder, golden.prompts, quantization="w8a16")
    monkeypatch.undo()
    copy = int8_formula.quantized_copy(golden.folder, tmp_path / "copy")
    expected = answered(copy, golden.prompts)
    assert [one.token_ids for one in found] == [one.token_ids for one in expected]
    np.testing.assert_allclose(of_the_prompts(found), of_the_prompts(expected), atol=1e-4)
    exact = of_the_prompts(answered(golden.folder, golden.prompts))
    assert np.abs(of_the_prompts(found) - exact).max() > 0.01, "int8 is not the checkpoint's own"


def answered(folder: Path, prompts: list[list[int]], **options: Any) -> list[Completion]:
    with LLM(folder, **{**OPTIONS, **options}) as llm:
        return llm.generate(prompts, GREEDY)


def of_the_prompts(completions: list[Completion]) -> NDArray[np.float64]:
    """Log-probabilities of all prompts' tokens."""
    return np.array([record.logprob for one in completions for record in one.prompt_logprobs or ()])


@pytest.mark.usefixtures("formula")
@pytest.mark.parametrize("scheme", ["w8a16", "w8a8"])
def test_a_damaged_weight_is_refused_while_loading(scheme: Int8Scheme, tmp_path: Path) -> None:
    folder = int8_formula.quantized_copy(reference.load("v2_gqa").folder, tmp_path / "copy")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.feed_forward.w2.weight"][3, 4] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    config = EngineConfig(path=folder, quantization=scheme, num_threads=1)
    with pytest.raises(CheckpointError, match="not finite"):
        Runner(config, ModelConfig.load(folder), rank=0)
