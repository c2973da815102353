"""Half-split rotary in place, on heads that may lie among others: a program for each token."""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _rotate_kernel(
    heads_ptr, cos_ptr, sin_ptr, count, half, row_stride, HEADS: tl.constexpr, HALF: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEADS)
    column = tl.arange(0, HALF)
    inside = (head[:, None] < count) & (column[None, :] < half)
    cos = tl.load(cos_ptr + token * half + column, mask=column < half, other=0.0).to(tl.float32)[None, :]
    sin = tl.load(sin_ptr + token * half + column, mask=column < half, other=0.0).to(tl.float32)[None, :]
    at = heads_ptr + token * row_stride + head[:, None] * (2 * half) + column[None, :]
    first = tl.load(at, mask=inside, other=0.0)
    kind = first.dtype
    first = first.to(tl.float32)
    second = tl.load(at + half, mask=inside, other=0.0).to(tl.float32)
    tl.store(at, (first * cos - second * sin).to(kind), mask=inside)
    tl.store(at + half, (second * cos + first * sin).to(kind), mask=inside)


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> None:
    """heads [tokens, heads, head_dim], each token's side by side; cos, sin [tokens, head_dim / 2]."""
    tokens, count, head_dim = heads.shape
    if (
        heads.stride(2) != 1
        or heads.stride(1) != head_dim
        or not (cos.is_contiguous() and sin.is_contiguous())
    ):
        raise ValueError("the rotary kernel needs each token's heads side by side, and contiguous angles")
    if tokens:
        _rotate_kernel[(tokens,)](
            heads, cos, sin, count, head_dim // 2, heads.stride(0),
            HEADS=triton.next_power_of_2(count), HALF=triton.next_power_of_2(head_dim // 2),
        )  # fmt: skip
