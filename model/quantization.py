"""A checkpoint's weights as int8: symmetric, one scale for each output, made while they are loaded.

It knows a weight and nothing of who multiplies by it, which is a device's.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from model.errors import CheckpointError

_LARGEST = 127


class Int8(NamedTuple):
    """Rows of integers, each with a scale: the numbers are values * scale[:, None]."""

    #: int8 [rows, columns], in -127…127.
    values: Tensor
    #: [rows]
    scale: Tensor


def quantize(rows: Tensor, scale_dtype: torch.dtype) -> Int8:
    """Each row of a matrix of floats: its largest magnitude becomes 127; a row of zeros has scale 1.

    The scale is rounded to `scale_dtype`, the one that is multiplied by, before the row is divided by it, so
    that a number is off by half a scale at most. It is not subnormal there: a device may take that for zero.
    Raises CheckpointError where a number is not finite.
    """
    least, most = rows.aminmax(dim=1)
    largest = torch.maximum(most, -least).float()
    if not bool(largest.isfinite().all()):
        raise CheckpointError("a weight to be quantized is not finite: is the checkpoint damaged?")
    scale = (largest / _LARGEST).clamp_(min=torch.finfo(scale_dtype).tiny)
    scale = scale.masked_fill_(largest == 0, 1).to(scale_dtype)
    values = rows.float().div(scale.float()[:, None]).round_().clamp_(-_LARGEST, _LARGEST)
    return Int8(values.to(torch.int8), scale)
