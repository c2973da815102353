"""Ascend NPUs, 800I A2 (910B) and 300I DUO (310P), through torch_npu.

It chooses: an operation of torch_npu (`npu_ops.py`) where the chip's list (`npu_chips.py`) and the installed
package have it and the shapes suit it, plain torch (`npu_torch.py`) elsewhere, which the log says once.
Nothing here has been run on a card yet: docs/devices.md says how far it was checked.
"""

import os
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from model.config import DTypeName
from model.devices import Projection, npu_attention, npu_ops, npu_torch
from model.devices.npu_attention import allocate_cache, attention
from model.devices.npu_chips import is_available, log_fallback, this_chip, torch_npu
from model.devices.npu_graphs import record_decode
from model.devices.npu_int8 import quantized_projection, scale_dtype
from model.errors import ConfigError

__all__ = ["BACKEND", "allocate_cache", "attention", "quantized_projection", "record_decode", "scale_dtype"]

#: Host integers go through gloo, tensors of the device through HCCL.
BACKEND = "cpu:gloo,npu:hccl"
#: Not until uploads from pinned memory have been tried on a card: from ordinary memory they wait.
RUNS_BEHIND = False

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
#: What HCCL takes of the device for each of a communicator's two buffers unless HCCL_BUFFSIZE says otherwise.
_HCCL_MEGABYTES = 200


def place(local_rank: int) -> torch.device:
    """The visible NPU of this number. Raises ConfigError where there is none, or no torch_npu."""
    chip = this_chip()
    npu = torch_npu().npu
    count = npu.device_count()
    if local_rank >= count:
        raise ConfigError(
            f"rank {local_rank} has no NPU: {count} visible; name more in ASCEND_RT_VISIBLE_DEVICES (a 300I "
            "DUO counts as two) or lower tensor_parallel_size"
        )
    npu.set_device(local_rank)
    # Kernels as they were built, none compiled for each new shape.
    npu.set_compile_mode(jit_compile=False)
    if chip.is_nz:
        npu.config.allow_internal_format = True
    if npu_attention.way() == "torch":
        log_fallback("attention", "the operations for it are not all installed")
    if npu_attention.way() == "public":
        log_fallback("attention of chunks that have a past", "NNAL's operations are not installed")
    return torch.device("npu", local_rank)


def set_threads(num_threads: int | None, world: int) -> None:
    """The host only prepares steps: a part of the CPUs, and not more than four."""
    torch.set_num_threads(num_threads or max(1, min(4, len(os.sched_getaffinity(0)) // world)))


def dtype(asked: DTypeName, stored: DTypeName) -> torch.dtype:
    """As asked, or of the chip's own the checkpoint's or else the first. Raises ConfigError."""
    chip = this_chip()
    names = [str(own).removeprefix("torch.") for own in chip.dtypes]
    if asked == "auto":
        return _DTYPES[stored] if stored in names else chip.dtypes[0]
    if asked not in names:
        raise ConfigError(
            f"{chip.name} ({chip.card}) does not compute in {asked}: set dtype to {' or '.join(names)}"
        )
    return _DTYPES[asked]


def spare_bytes(world: int) -> int:
    """The chip's share of what is free on this rank's device, less what HCCL is going to take."""
    free, _ = torch_npu().npu.mem_get_info()
    buffers = 2 * int(os.environ.get("HCCL_BUFFSIZE", _HCCL_MEGABYTES)) * 2**20 if world > 1 else 0
    return max(0, int(free * this_chip().cache_share) - buffers)


def used_bytes() -> int:
    """What is in use of this rank's NPU."""
    free, total = torch_npu().npu.mem_get_info()
    return int(total - free)


def projection(weight: Tensor, bias: Tensor | None) -> Projection:
    """torch's linear, over a weight in the chip's own format."""
    return _Projection(weight, bias)


class _Projection:
    """One weight; `summed` is what `Group.sum_of` looks for."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        if this_chip().is_nz and is_available("npu_format_cast"):
            weight = npu_ops.to_nz(weight.contiguous())
        self.weight, self.bias = weight, bias
        #: Tokens from which on the product and its sum over the ranks are one operation; 0 is never.
        self.fused_from = int(os.environ.get("NPU_MATMUL_ALL_REDUCE", "0"))

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def summed(self, x: Tensor, rank: int, world: int) -> Tensor | None:
        """The sum over the ranks, or None where the operation for it is not wanted or not to be had."""
        if not 0 < self.fused_from <= len(x) or not is_available("npu_mm_all_reduce_base"):
            return None
        return npu_ops.matmul_all_reduce(x, self.weight.t(), self.bias, _communicator(rank), world)


@cache
def _communicator(rank: int) -> str:
    """HCCL's name of the ranks' group, which this makes if nothing was sent yet: all ranks ask at once."""
    group = dist.distributed_c10d._get_default_group()
    backend: Any = group._get_backend(torch.device("npu"))
    return str(backend.get_hccl_comm_name(rank))


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm."""
    if _uses("npu_rms_norm"):
        return npu_ops.rms_norm(x, weight, eps)
    return npu_torch.norm(x, weight, eps)


def add_norm(residual: Tensor, delta: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Addition in place, then RMSNorm. The sum is not copied: residual takes over its memory."""
    if not _uses("npu_add_rms_norm"):
        return norm(residual.add_(delta), weight, eps)
    normed, total = npu_ops.add_rms_norm(residual, delta, weight, eps)
    residual.set_(total)  # type: ignore[call-overload]
    return normed


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Half-split rotary in place."""
    if not npu_ops.turns(heads.shape[2]):
        log_fallback("rotary", f"the operations for it take no heads of {heads.shape[2]}")
        npu_torch.rotate(heads, cos, sin)
    elif is_available("npu_rotary_mul"):
        heads.copy_(npu_ops.rotary_mul(heads.contiguous()[None], _full(cos), _full(sin))[0])
    elif is_available("npu_apply_rotary_pos_emb"):
        # It turns two tensors, which are to be queries and keys; here they come as one.
        first, last = (part.contiguous()[None] for part in (heads[:, :-1], heads[:, -1:]))
        npu_ops.apply_rotary(first, last, _full(cos), _full(sin))
        heads[:, :-1].copy_(first[0])
        heads[:, -1:].copy_(last[0])
    else:
        log_fallback("rotary", "the operations for it are not installed")
        npu_torch.rotate(heads, cos, sin)


def gate(gate_up: Tensor) -> Tensor:
    """silu(gate) * up."""
    if _uses("npu_swiglu"):
        return npu_ops.swiglu(gate_up)
    return npu_torch.gate(gate_up)


#: cos and sin of a step in full width, for as long as the step has them: every layer asks.
_FULL = WeakTensorKeyDictionary()


def _full(half: Tensor) -> Tensor:
    """[tokens, head_dim / 2] → [1, tokens, 1, head_dim]"""
    if half not in _FULL:
        _FULL[half] = torch.cat((half, half), -1)[None, :, None]
    return _FULL[half]  # type: ignore[no-any-return]


def _uses(operation: str) -> bool:
    if is_available(operation):
        return True
    log_fallback(operation, "not documented for the chip, or not installed")
    return False
