"""A step's keys and values into the cache, [blocks, kv_heads, size, head_dim]: a program for each token."""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _write_kernel(
    key_ptr, value_ptr, keys_ptr, values_ptr, slots_ptr, key_stride, value_stride, block_stride,
    kv_heads, head_dim, size, HEADS: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + token)
    # A slot below zero belongs to a row that only fills up a recorded step: nothing is written.
    if slot >= 0:
        head = tl.arange(0, HEADS)[:, None]
        column = tl.arange(0, DIM)[None, :]
        inside = (head < kv_heads) & (column < head_dim)
        source = head * head_dim + column
        to = (slot // size).to(tl.int64) * block_stride + (head * size + slot % size) * head_dim + column
        key = tl.load(key_ptr + token * key_stride + source, mask=inside)
        tl.store(keys_ptr + to, key, mask=inside)
        value = tl.load(value_ptr + token * value_stride + source, mask=inside)
        tl.store(values_ptr + to, value, mask=inside)


def write(key: Tensor, value: Tensor, keys: Tensor, values: Tensor, slots: Tensor) -> None:
    """key, value [tokens, kv_heads, head_dim], heads side by side; slots [tokens]: block * size + offset."""
    tokens, kv_heads, head_dim = key.shape
    if tokens:
        _write_kernel[(tokens,)](
            key, value, keys, values, slots, key.stride(0), value.stride(0), keys.stride(0),
            kv_heads, head_dim, keys.shape[2],
            HEADS=triton.next_power_of_2(kv_heads), DIM=triton.next_power_of_2(head_dim),
        )  # fmt: skip
