"""CUDA GPUs: Triton kernels for what is not a matrix product, cuBLAS through torch for what is.

The cache is [blocks, kv_heads, block_size, head_dim]: a block's keys of one head are one matrix. float16 and
bfloat16; float32 for checks. Decode steps are recorded as CUDA graphs, see `cuda_graphs.py`.
"""

import os

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from torch import Tensor

from model.batch import AttentionMetadata
from model.config import DTypeName
from model.devices import Attend, CacheShape, DecodeLimits, DecodeRun, DecodeStep, LayerCache, Projection
from model.devices import cuda_card as card
from model.errors import ConfigError

try:
    from model.devices import cuda_attention, cuda_graphs
    from model.devices.cuda_kernels import rotary, rows
except ModuleNotFoundError as error:
    if error.name != "triton":
        raise
    raise ConfigError(
        f"device cuda needs a GPU and the package triton, which CUDA builds of torch bring and torch "
        f"{torch.__version__} did not: install a CUDA build (or triton itself), or use device cpu"
    ) from error

#: Host integers go over gloo, tensors on the GPU over NCCL.
BACKEND = "cpu:gloo,cuda:nccl"
RUNS_BEHIND = True

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

norm = rows.norm
add_norm = rows.add_norm
gate = rows.gate
rotate = rotary.rotate


def place(local_rank: int) -> torch.device:
    """The GPU of this number. Raises ConfigError where there is none."""
    return card.choose(local_rank)


def set_threads(num_threads: int | None, world: int) -> None:
    """An equal part of the CPUs, to read the weights; a step hardly uses them."""
    torch.set_num_threads(num_threads or max(1, len(os.sched_getaffinity(0)) // world))


def dtype(asked: DTypeName, stored: DTypeName) -> torch.dtype:
    """As asked or stored; float16 for stored bfloat16 where the GPU has none. Raises ConfigError."""
    chosen = stored if asked == "auto" else asked
    if chosen == "bfloat16" and not card.multiplies_bfloat16():
        if asked != "auto":
            raise ConfigError("this GPU does not compute in bfloat16: use dtype float16")
        chosen = "float16"
    return _DTYPES[chosen]


def spare_bytes(world: int) -> int:  # noqa: ARG001 - each rank has a GPU to itself
    """What the cache may take of this rank's GPU."""
    return card.spare_bytes()


def used_bytes() -> int:
    """What is in use of this rank's GPU."""
    return card.used_bytes()


def projection(weight: Tensor, bias: Tensor | None) -> Projection:
    """cuBLAS."""
    weight = weight.contiguous()
    return lambda x: F.linear(x, weight, bias)


def allocate_cache(shape: CacheShape, dtype: torch.dtype, where: torch.device) -> LayerCache:
    """Memory as it is: what lies past a sequence's end is not read."""
    blocks, size, kv_heads, head_dim = shape
    keys, values = (
        torch.empty((blocks, kv_heads, size, head_dim), dtype=dtype, device=where) for _ in range(2)
    )
    return LayerCache(keys, values)


def attention(metadata: AttentionMetadata, kv_heads: int, where: torch.device) -> Attend:  # noqa: ARG001
    """Prepare one step."""
    return cuda_attention.prepare(metadata, where, card.processors())


def record_decode(run: DecodeRun, limits: DecodeLimits, where: torch.device) -> DecodeStep:
    """Decode steps by CUDA graphs, one for each of a ladder of batch sizes, recorded when first needed."""
    return cuda_graphs.DecodeGraphs(run, limits, where)
