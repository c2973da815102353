"""Calls of the operations with int8 weights, right and wrong, as in calls.py."""

from collections.abc import Mapping

import torch
from torch import Tensor

from model.devices import npu_int8_ops, npu_ops
from tests.npu.calls import Arguments, Call, Change, draw, strided, to, wider

TOKENS, INPUTS, OUTPUTS = 5, 48, 32
_TOO_WIDE = 65536


def integers(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8)


def scales(length: int, dtype: torch.dtype) -> Tensor:
    return (draw(length, dtype=torch.float32).abs() / 127 + 1e-3).to(dtype)


def weight_quant(dtype: torch.dtype) -> Arguments:
    bias = draw(OUTPUTS, dtype=torch.float32 if dtype == torch.bfloat16 else dtype)
    return {
        "x": draw(TOKENS, INPUTS, dtype=dtype),
        "weight": integers(OUTPUTS, INPUTS).t(),
        "scale": scales(OUTPUTS, dtype),
        "bias": bias,
    }


def weight_quant_formula(given: Arguments) -> Tensor:
    product = given["x"].double() @ (given["weight"].double() * given["scale"].double())
    return product if given["bias"] is None else product + given["bias"].double()


def quant(dtype: torch.dtype) -> Arguments:
    return {
        "x": integers(TOKENS, INPUTS),
        "token_scale": scales(TOKENS, torch.float32),
        "weight": integers(INPUTS, OUTPUTS),
        "scale": scales(OUTPUTS, torch.float32),
        "bias": draw(OUTPUTS, dtype=torch.float32),
        "out": dtype,
    }


def quant_formula(given: Arguments) -> Tensor:
    x = given["x"].double() * given["token_scale"].double()[:, None]
    product = x @ (given["weight"].double() * given["scale"].double())
    return product if given["bias"] is None else product + given["bias"].double()


def activations(dtype: torch.dtype) -> Arguments:
    """Of several sizes, and one token of zeros."""
    x = draw(TOKENS, INPUTS, dtype=torch.float32) * torch.tensor([1.0, 0.01, 0, 30, 5])[:, None]
    return {"x": x.to(dtype)}


def activations_formula(given: Arguments) -> list[Tensor]:
    scale = given["x"].double().abs().amax(1) / 127
    divided = given["x"].double() / scale.where(scale > 0, 1)[:, None]
    return [divided.round(), scale]


def without_bias(given: Arguments) -> Arguments:
    return {**given, "bias": None}


CALLS: Mapping[str, Call] = {
    "npu_weight_quant_batchmatmul": Call(
        npu_int8_ops.weight_quant_matmul, weight_quant, weight_quant_formula
    ),
    "npu_weight_quant_batchmatmul plain": Call(
        npu_int8_ops.weight_quant_matmul,
        lambda dtype: without_bias(weight_quant(dtype)),
        weight_quant_formula,
    ),
    "npu_dynamic_quant": Call(
        npu_int8_ops.dynamic_quant,
        activations,
        activations_formula,
        dtypes=(torch.int8, torch.float32),
    ),
    "npu_quant_matmul": Call(npu_int8_ops.quant_matmul, quant, quant_formula),
    "npu_quant_matmul plain": Call(
        npu_int8_ops.quant_matmul, lambda dtype: without_bias(quant(dtype)), quant_formula
    ),
    "npu_format_cast int8": Call(
        npu_ops.to_nz,
        lambda _: {"tensor": integers(32, 48)},
        lambda given: given["tensor"],
        dtypes=(torch.int8,),
    ),
}


def rows_of_inputs(given: Arguments) -> Arguments:
    """The weight lies [in, out]."""
    return {**given, "weight": given["weight"].contiguous()}


def too_wide(given: Arguments) -> Arguments:
    """As many outputs as 16 bits count, and one more."""
    others = {name: given[name].new_zeros(_TOO_WIDE) for name in ("scale", "bias")}
    weight = given["weight"]
    shape = (_TOO_WIDE, len(weight)) if not weight.is_contiguous() else (len(weight), _TOO_WIDE)
    made = torch.zeros(shape, dtype=torch.int8)
    return {**given, **others, "weight": made if weight.is_contiguous() else made.t()}


def shorter(tensor: Tensor) -> Tensor:
    return tensor[:-1].contiguous()


def floats(tensor: Tensor) -> Tensor:
    """Where a tensor has this dtype already, another."""
    return tensor.float() if tensor.dtype != torch.float32 else tensor.half()


def unsigned(tensor: Tensor) -> Tensor:
    return tensor.t().contiguous().view(torch.uint8).t()


WRONG: Mapping[str, list[tuple[str, Change, str]]] = {
    "npu_weight_quant_batchmatmul": [
        ("scales of another dtype", to("scale", floats), "several dtypes"),
        ("a dtype that the chip has not", lambda given: {**given, "x": wider(given["x"])}, "no dtype"),
        ("a weight of bytes", to("weight", unsigned), "the weight is"),
        ("a weight that lies by inputs", rows_of_inputs, "transposed view"),
        ("a weight for other inputs", to("x", lambda one: one[:, 1:].contiguous()), "times"),
        ("too few scales", to("scale", shorter), "scales"),
        ("a bias of another dtype", to("bias", wider), "the bias is"),
        ("too short a bias", to("bias", shorter), "a bias"),
        ("a bias that is not contiguous", to("bias", strided), "not contiguous"),
        ("activations that are not contiguous", to("x", strided), "not contiguous"),
        ("no tokens", to("x", lambda one: one[:0]), "empty"),
        ("65536 outputs", too_wide, "over 65535"),
    ],
    "npu_dynamic_quant": [
        ("a dtype that the chip has not", to("x", wider), "no dtype"),
        ("no matrix", to("x", lambda one: one[0]), "is not"),
        ("no tokens", to("x", lambda one: one[:0]), "empty"),
    ],
    "npu_quant_matmul": [
        ("activations that are not int8", to("x", lambda one: one.half()), "x is"),
        ("a weight of bytes", to("weight", unsigned), "the weight is"),
        ("a weight that lies by outputs", to("weight", lambda one: one.t().contiguous().t()), "contiguous"),
        ("a weight for other inputs", to("weight", shorter), "times"),
        ("scales in float16", to("scale", lambda one: one.half()), "scales of outputs are"),
        ("tokens' scales in float16", to("token_scale", lambda one: one.half()), "scales of tokens are"),
        ("too few scales", to("scale", shorter), "scales"),
        ("tokens' scales as a column", to("token_scale", lambda one: one[:, None]), "scales"),
        ("a bias in int32", to("bias", lambda one: one.int()), "the bias is"),
        ("too short a bias", to("bias", shorter), "a bias"),
        ("a result in int8", to("out", lambda _: torch.int8), "no dtype"),
        (
            "no tokens",
            lambda given: {**given, "x": given["x"][:0], "token_scale": given["token_scale"][:0]},
            "empty",
        ),
        ("65536 outputs", too_wide, "over 65535"),
    ],
}
