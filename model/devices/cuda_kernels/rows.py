"""RMSNorm, addition and RMSNorm, and the gate, in float32: a program for each row, or for a piece of one."""

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Columns of the gate that one program computes.
_GATE_COLUMNS = 1024


@triton.jit
def _norm_kernel(x_ptr, delta_ptr, weight_ptr, out_ptr, columns, eps, ADD: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < columns
    at = row * columns + column
    x = tl.load(x_ptr + at, mask=inside, other=0.0)
    kind = x.dtype
    x = x.to(tl.float32)
    if ADD:
        x += tl.load(delta_ptr + at, mask=inside, other=0.0).to(tl.float32)
        # The norm is of what the residual keeps: the sum in its dtype.
        total = x.to(kind)
        tl.store(x_ptr + at, total, mask=inside)
        x = total.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(x * x, axis=0) / columns + eps)
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, ((x * scale).to(kind).to(tl.float32) * weight).to(kind), mask=inside)


@triton.jit
def _gate_kernel(gate_up_ptr, out_ptr, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    gate = tl.load(gate_up_ptr + row * 2 * columns + column, mask=inside, other=0.0)
    up = tl.load(gate_up_ptr + (row * 2 + 1) * columns + column, mask=inside, other=0.0).to(tl.float32)
    wide = gate.to(tl.float32)
    out = wide / (1.0 + tl.exp(-wide)) * up
    tl.store(out_ptr + row * columns + column, out.to(gate.dtype), mask=inside)


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of [tokens, columns]."""
    return _normed(x, x, weight, eps, add=False)


def add_norm(residual: Tensor, delta: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Addition in place, then RMSNorm, of [tokens, columns]."""
    return _normed(residual, delta, weight, eps, add=True)


def _normed(x: Tensor, delta: Tensor, weight: Tensor, eps: float, *, add: bool) -> Tensor:
    rows, columns = x.shape
    _require_contiguous(x, delta, weight)
    out = torch.empty_like(x)
    if rows:
        block = triton.next_power_of_2(columns)
        warps = 8 if block >= 4096 else 4
        _norm_kernel[(rows,)](x, delta, weight, out, columns, eps, ADD=add, BLOCK=block, num_warps=warps)
    return out


def gate(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of [tokens, 2 * columns], gate first."""
    rows, columns = gate_up.shape[0], gate_up.shape[1] // 2
    _require_contiguous(gate_up)
    out = gate_up.new_empty(rows, columns)
    if rows:
        block = min(_GATE_COLUMNS, triton.next_power_of_2(columns))
        _gate_kernel[(rows, triton.cdiv(columns, block))](gate_up, out, columns, BLOCK=block)
    return out


def _require_contiguous(*tensors: Tensor) -> None:
    if not all(tensor.is_contiguous() for tensor in tensors):
        raise ValueError("the kernels need contiguous tensors")
