"""Projections with int8 weights on the device: against the formula, their fallbacks, what they refuse."""

import logging

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from model import LLM
from model.config import Int8Scheme
from model.devices import Quantizes, npu, npu_chips, npu_int8, npu_int8_ops
from model.errors import ConfigError, NpuCallError
from model.quantization import quantize
from tests import int8_formula
from tests.golden import reference
from tests.npu import emulation

WHERE = npu.place(0)
CHIP = npu_chips.this_chip()
SCHEMES: list[Int8Scheme] = ["w8a16", "w8a8"] if CHIP.name == "910B" else ["w8a16"]
#: Of a result, next to the largest.
CLOSE = {torch.float16: 2**-10, torch.bfloat16: 2**-7}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def products(scheme: Int8Scheme, dtype: torch.dtype, *, biased: bool) -> tuple[Tensor, Tensor, Tensor]:
    """By the device, by the formula over the same integers, and by the weight as it was."""
    x, weight = draw(5, 48).to(dtype), (0.05 * draw(32, 48, seed=1)).to(dtype)
    bias = draw(32, seed=2).to(dtype) if biased else None
    values, scale = quantize(weight, npu.scale_dtype(scheme, dtype))
    own = [None if one is None else one.to(WHERE) for one in (values, scale, bias)]
    with torch.inference_mode():
        found = npu.quantized_projection(*own, scheme)(x.to(WHERE)).cpu()
    expected = int8_formula.quantized_projection(values, scale, bias, scheme)(x.float())
    return found, expected, F.linear(x.float(), weight.float(), None if bias is None else bias.float())


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", CHIP.dtypes)
@pytest.mark.parametrize("biased", [True, False])
def test_a_projection_gives_what_the_formula_gives(
    scheme: Int8Scheme, dtype: torch.dtype, biased: bool
) -> None:
    before = emulation.current[0].calls.copy()
    found, expected, _ = products(scheme, dtype, biased=biased)
    assert found.dtype == dtype
    assert float((found.float() - expected).abs().max()) <= CLOSE[dtype] * float(expected.abs().max())
    used = {name.removeprefix("npu::") for name in emulation.current[0].calls - before}
    nz = {"npu_format_cast"} if scheme == "w8a8" else set()
    assert used == {*npu_int8.OPERATIONS[scheme], *nz}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_projection_is_as_far_from_the_checkpoints_as_its_steps_allow(scheme: Int8Scheme) -> None:
    """An output adds up 48 products, each of a weight, or activation, that is off by half a step at most."""
    found, _, exact = products(scheme, torch.float16, biased=True)
    x, weight = draw(5, 48).half().float(), (0.05 * draw(32, 48, seed=1)).half().float()
    half_step = weight.abs().amax(1) / 127 / 2
    bound = x.abs().sum(1, keepdim=True) * half_step
    if scheme == "w8a8":
        token_half_step = x.abs().amax(1, keepdim=True) / 127 / 2
        bound += token_half_step * (weight.abs() + half_step[:, None]).sum(1)
    rounding = 2**-10 * exact.abs().max()
    assert bool(((found.float() - exact).abs() <= bound + rounding).all())
    assert bool((found.float() != exact.half().float()).any()), "int8 is not the checkpoint's own"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_without_the_installed_operations(
    scheme: Int8Scheme, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Plain torch, which does not quantize activations, and which the log says once."""
    monkeypatch.setattr(npu_int8, "is_available", lambda _: False)
    npu_chips.log_fallback.cache_clear()
    before = emulation.current[0].calls.copy()
    with caplog.at_level(logging.WARNING):
        found = [products(scheme, dtype, biased=True) for dtype in (torch.float16, torch.float16)]
    assert [record.message for record in caplog.records] == [
        f"quantization {scheme} goes through plain torch on {CHIP.name}: its operations are not installed"
    ]
    assert emulation.current[0].calls == before
    x, weight, bias = draw(5, 48).half(), (0.05 * draw(32, 48, seed=1)).half(), draw(32, seed=2).half()
    values, scale = quantize(weight, torch.float32)
    expected = F.linear(x.float(), values * scale[:, None], bias.float())
    for result, _, _ in found:
        assert float((result.float() - expected).abs().max()) <= 2**-8 * float(expected.abs().max())


def test_the_device_says_that_it_quantizes() -> None:
    assert isinstance(npu, Quantizes)
    assert npu.scale_dtype("w8a16", torch.float16) == torch.float16


@pytest.mark.skipif(CHIP.name != "310P", reason="the 910B has it")
def test_a_310p_refuses_w8a8_before_it_reads_a_weight() -> None:
    text = r"310P \(300I DUO\) does not quantize each token .* set quantization to w8a16"
    with pytest.raises(ConfigError, match=text):
        LLM(reference.load("v2_gqa").folder, device="npu", dtype="float16", quantization="w8a8")


@pytest.mark.parametrize("shape", [(65536, 16), (16, 65536)])
def test_a_projection_that_is_too_large(shape: tuple[int, int]) -> None:
    weight = torch.zeros(shape, dtype=torch.int8, device=WHERE)
    scale = torch.ones(shape[0], dtype=torch.float16, device=WHERE)
    with pytest.raises(ConfigError, match=r"more than 65535 rows or columns.*raise tensor_parallel_size"):
        npu.quantized_projection(weight, scale, None, "w8a16")


def test_a_quantized_projection_is_not_summed_over_the_ranks_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NPU_MATMUL_ALL_REDUCE", "1")
    values, scale = quantize(draw(32, 48), torch.float16)
    assert not hasattr(npu.quantized_projection(values.to(WHERE), scale.to(WHERE), None, "w8a16"), "summed")


def test_the_wrapper_of_a_dtype_of_its_own_refuses_what_the_schema_lets_pass() -> None:
    """The real schema and Meta kernel take scales in float16 for a result in float16, without a word."""
    torch_npu = npu_chips.torch_npu()
    x, weight = (torch.empty(size, dtype=torch.int8, device="meta") for size in ((5, 48), (48, 32)))
    scale, token_scale = torch.empty(32, device="meta").half(), torch.empty(5, device="meta")
    torch_npu.npu_quant_matmul(x, weight, scale, pertoken_scale=token_scale, output_dtype=torch.float16)
    with pytest.raises(NpuCallError, match=r"not an operation of|scales of outputs are"):
        npu_int8_ops.quant_matmul(x, token_scale, weight, scale, None, out=torch.float16)
