"""The CPU: the reference of the device interface, and fast enough to be used.

Operations are C++ kernels where they were built and know the dtype, plain torch elsewhere; matrix products
are torch's. The cache is [blocks, kv_heads, block_size, head_dim]: a block's keys of one head are one matrix.
"""

import math
import os
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from torch import Tensor

from model.batch import AttentionMetadata
from model.config import DTypeName
from model.devices import Attend, CacheShape, LayerCache, Projection, cpu_kernels, cpu_torch
from model.memory import available_memory, resident_memory

BACKEND = "gloo"
RUNS_BEHIND = False

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class Operations(Protocol):
    """What kernels and torch both do: see `Device`."""

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor: ...  # noqa: D102
    def add_norm(self, residual: Tensor, delta: Tensor, weight: Tensor, eps: float) -> Tensor: ...  # noqa: D102
    def rotate(self, heads: Tensor, cos: Tensor, sin: Tensor) -> None: ...  # noqa: D102
    def gate(self, gate_up: Tensor) -> Tensor: ...  # noqa: D102
    def fits(self, group: int, head_dim: int) -> bool: ...  # noqa: D102
    def attention(self, metadata: AttentionMetadata, heads: int, kv_heads: int, head_dim: int) -> Attend: ...  # noqa: D102


#: The instruction set of the kernels, "none" where none were built.
INSTRUCTION_SET = next(iter(cpu_kernels.instruction_sets()), "none")
#: Kernels by dtype. What is not here goes through torch.
KERNELS: Mapping[torch.dtype, Operations] = cpu_kernels.load(INSTRUCTION_SET)


def place(local_rank: int) -> torch.device:  # noqa: ARG001 - one host, whatever the rank
    """Host memory."""
    return torch.device("cpu")


def set_threads(num_threads: int | None, world: int) -> None:
    """An equal part of the CPUs that this process may use."""
    torch.set_num_threads(num_threads or max(1, len(os.sched_getaffinity(0)) // world))


def dtype(asked: DTypeName, stored: DTypeName) -> torch.dtype:
    """As asked or stored; float16 is chosen only if asked for, since CPUs multiply it many times slower."""
    if asked == "auto":
        asked = "bfloat16" if stored == "float16" else stored
    return _DTYPES[asked]


def spare_bytes(world: int) -> int:
    """Half of the memory that is available now, shared by the ranks."""
    return available_memory() // 2 // world


def used_bytes() -> int:
    """What this process and its ranks hold of the host's memory."""
    return resident_memory()


def projection(weight: Tensor, bias: Tensor | None) -> Projection:
    """torch's linear; in bfloat16 over a weight that oneDNN has packed once, rather than on each call."""
    if weight.dtype != torch.bfloat16 or not torch.backends.mkldnn.enabled:
        return lambda x: F.linear(x, weight, bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
    multiply = torch.ops.mkldnn._linear_pointwise
    return lambda x: multiply(x, packed, bias, "none", [], "")


def kernels_in_use() -> str:
    """The kernels' instruction set, or "none" where all goes through torch."""
    return INSTRUCTION_SET if KERNELS else "none"


def _operations(tensor: Tensor) -> Operations:
    return KERNELS.get(tensor.dtype, cpu_torch)


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm."""
    return _operations(x).norm(x, weight, eps)


def add_norm(residual: Tensor, delta: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Addition in place, then RMSNorm."""
    return _operations(residual).add_norm(residual, delta, weight, eps)


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Half-split rotary in place."""
    _operations(heads).rotate(heads, cos, sin)


def gate(gate_up: Tensor) -> Tensor:
    """silu(gate) * up."""
    return _operations(gate_up).gate(gate_up)


def allocate_cache(shape: CacheShape, dtype: torch.dtype, where: torch.device) -> LayerCache:
    """Zeros that take no memory before they are written: numpy's are calloc's, torch's are written at once.

    Not just anything, for attention reads past a sequence's end and weighs what it finds by zero.
    """

    def zeros() -> Tensor:
        pages = np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)
        blocks, size, kv_heads, head_dim = shape
        return torch.from_numpy(pages).view(dtype).view(blocks, kv_heads, size, head_dim).to(where)

    return LayerCache(zeros(), zeros())


def attention(metadata: AttentionMetadata, kv_heads: int, where: torch.device) -> Attend:  # noqa: ARG001
    """Prepare one step; by what, the first layer's queries tell."""
    prepared: Attend | None = None

    def attend(query: Tensor, key: Tensor, value: Tensor, cache: LayerCache) -> Tensor:
        nonlocal prepared
        if prepared is None:
            _, heads, head_dim = query.shape
            operations = _operations(query)
            if not operations.fits(heads // kv_heads, head_dim):
                operations = cpu_torch
            prepared = operations.attention(metadata, heads, kv_heads, head_dim)
        return prepared(query, key, value, cache)

    return attend
