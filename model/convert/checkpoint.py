"""What the steps of a conversion take and give: a Checkpoint, whose tensors are read when written."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class LazyTensor:
    """A tensor that can be read: `read()` gives `shape` in `dtype`, on the CPU, and owns its memory."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]

    @property
    def nbytes(self) -> int:
        """Size in bytes once read."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A model: its config.json, its tensors by name, and the other files that belong to it by file name."""

    config: Mapping[str, Any]
    tensors: Mapping[str, LazyTensor]
    files: Mapping[str, bytes]


def cast(tensor: LazyTensor, dtype: torch.dtype) -> LazyTensor:
    """Return the tensor in `dtype`."""
    return LazyTensor(shape=tensor.shape, dtype=dtype, read=lambda: tensor.read().to(dtype))
