"""Projections with int8 weights on an NPU: which schemes a chip has, and how each wants its weight.

What is chosen is an operation of `npu_int8_ops.py`, or plain torch over the weight in full, which the log
says once. A product with an int8 weight and its sum over the ranks are always two operations.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from model.config import Int8Scheme
from model.devices import Projection, npu_int8_ops, npu_ops, npu_torch
from model.devices.npu_chips import is_available, log_fallback, this_chip, torch_npu
from model.errors import ConfigError

#: What a scheme is made of.
OPERATIONS: Mapping[Int8Scheme, tuple[str, ...]] = {
    "w8a16": ("npu_weight_quant_batchmatmul",),
    "w8a8": ("npu_dynamic_quant", "npu_quant_matmul"),
}


def scale_dtype(scheme: Int8Scheme, own: torch.dtype) -> torch.dtype:
    """w8a16 multiplies by scales in the engine's dtype, w8a8 in float32. Raises ConfigError on a 310P."""
    chip = this_chip()
    if not chip.operations.issuperset(OPERATIONS[scheme]):
        raise ConfigError(
            f"{chip.name} ({chip.card}) does not quantize each token as it comes, which {scheme} needs: "
            "set quantization to w8a16"
        )
    return own if scheme == "w8a16" else torch.float32


def quantized_projection(
    weight: Tensor, scale: Tensor, bias: Tensor | None, scheme: Int8Scheme
) -> Projection:
    """A product with weight int8 [out, in]. Raises ConfigError for one that is too large for the chip."""
    if max(weight.shape) > npu_int8_ops.LARGEST:
        raise ConfigError(
            f"a projection of {list(weight.shape)} has more than {npu_int8_ops.LARGEST} rows or columns, the "
            "most that int8 products take: raise tensor_parallel_size, or set quantization to none"
        )
    if all(map(is_available, OPERATIONS[scheme])):
        return _PREPARE[scheme](weight, scale, bias)
    log_fallback(f"quantization {scheme}", "its operations are not installed")
    return lambda x: npu_torch.dequantized_linear(x, weight, scale, bias)


def _w8a16(weight: Tensor, scale: Tensor, bias: Tensor | None) -> Projection:
    transposed = weight.contiguous().t()
    bias = None if bias is None else bias.to(npu_int8_ops.bias_dtype(scale.dtype))
    return lambda x: npu_int8_ops.weight_quant_matmul(x, transposed, scale, bias)


def _w8a8(weight: Tensor, scale: Tensor, bias: Tensor | None) -> Projection:
    transposed = weight.t().contiguous()
    if is_available("npu_format_cast"):
        torch_npu().npu.config.allow_internal_format = True
        transposed = npu_ops.to_nz(transposed)
    bias = None if bias is None else bias.float()

    def multiply(x: Tensor) -> Tensor:
        values, token_scale = npu_int8_ops.dynamic_quant(x)
        return npu_int8_ops.quant_matmul(values, token_scale, transposed, scale, bias, out=x.dtype)

    return multiply


_PREPARE: Mapping[Int8Scheme, Callable[[Tensor, Tensor, Tensor | None], Projection]] = {
    "w8a16": _w8a16,
    "w8a8": _w8a8,
}
