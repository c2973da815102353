"""One function for each operation of torch_npu that multiplies by int8 weights, as in `npu_ops.py`.

Conditions are those of the documentation that torch_npu 2.13 carries. Where a bias may have several dtypes
and the documentation has disagreed with itself, the one that it has always named is asked for.
"""

import torch
from torch import Tensor

from model.devices.npu_checks import allowed, contiguous, dtypes, require
from model.devices.npu_chips import this_chip, torch_npu

#: Rows and columns of a weight, at most.
LARGEST = 65535


def bias_dtype(own: torch.dtype) -> torch.dtype:
    """What `weight_quant_matmul` takes a bias in, where it computes in `own`."""
    return torch.float32 if own == torch.bfloat16 else own


def weight_quant_matmul(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """x [tokens, in] times weight int8 [in, out] times scale [out], plus bias [out] → like x.

    The weight is the transposed view of one that lies [out, in], which the documentation advises for one
    scale per output, and not in FRACTAL_NZ, which it allows in graphs of torchair alone.
    """
    name = "npu_weight_quant_batchmatmul"
    allowed(name)
    dtypes(name, x, scale)
    contiguous(name, x, scale)
    _matrices(name, x, weight)
    require(name, weight.t().is_contiguous(), "the weight is not the transposed view of rows of outputs")
    require(
        name, scale.shape == weight.shape[1:], f"scales {list(scale.shape)} for {weight.shape[1]} outputs"
    )
    _bias(name, bias, bias_dtype(x.dtype), weight)
    return torch_npu().npu_weight_quant_batchmatmul(x, weight, scale, bias=bias)  # type: ignore[no-any-return]


def dynamic_quant(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [tokens, columns] → the same as int8, and each token's scale, float32 [tokens]."""
    name = "npu_dynamic_quant"
    allowed(name)
    dtypes(name, x)
    require(name, x.dim() == 2, f"{list(x.shape)} is not [tokens, columns]")
    require(name, x.numel() > 0, "empty tensors are not allowed")
    values, scale = torch_npu().npu_dynamic_quant(x)
    return values, scale


def quant_matmul(
    x: Tensor, token_scale: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, *, out: torch.dtype
) -> Tensor:
    """(x * token_scale) [tokens, in] times (weight * scale) [in, out], plus bias [out] → [tokens, out].

    x and weight are int8, scales [tokens] and [out] and the bias float32; `out` is the result's dtype. The
    weight lies as it is said here, and may be in FRACTAL_NZ, which the documentation advises.
    """
    name = "npu_quant_matmul"
    allowed(name)
    require(name, x.dtype == torch.int8, f"x is {x.dtype} and not int8")
    _matrices(name, x, weight)
    contiguous(name, x, weight, scale, token_scale)
    for one, length, what in ((token_scale, len(x), "token"), (scale, weight.shape[1], "output")):
        require(name, one.dtype == torch.float32, f"the scales of {what}s are {one.dtype} and not float32")
        require(name, one.shape == (length,), f"scales {list(one.shape)} for {length} {what}s")
    _bias(name, bias, torch.float32, weight)
    require(name, out in this_chip().dtypes, f"{out} is no dtype of {this_chip().name}")
    return torch_npu().npu_quant_matmul(  # type: ignore[no-any-return]
        x, weight, scale, pertoken_scale=token_scale, bias=bias, output_dtype=out
    )


def _matrices(name: str, x: Tensor, weight: Tensor) -> None:
    require(name, weight.dtype == torch.int8, f"the weight is {weight.dtype} and not int8")
    require(name, x.dim() == weight.dim() == 2, "x and weight are no matrices")
    require(name, x.shape[1] == weight.shape[0], f"{list(x.shape)} times {list(weight.shape)}")
    require(name, x.numel() > 0 and weight.numel() > 0, "empty tensors are not allowed")
    require(name, max(weight.shape) <= LARGEST, f"{list(weight.shape)} is over {LARGEST} in a dimension")


def _bias(name: str, bias: Tensor | None, wanted: torch.dtype, weight: Tensor) -> None:
    if bias is None:
        return
    require(name, bias.dtype == wanted, f"the bias is {bias.dtype} and not {wanted}")
    require(name, bias.shape == weight.shape[1:], f"a bias {list(bias.shape)} for {weight.shape[1]} outputs")
    contiguous(name, bias)
