"""Causal attention over the paged cache, for chunks of prompts and single tokens alike.

A program takes a tile of queries with one kv head: the tile's rows are tokens × the query heads that share
it, so that keys and values are read once for the whole group. Where there are few tiles, the keys of each are
split among several programs, and a second kernel adds the parts up under their common maximum, as
Flash-Decoding does. No launch depends on what is on the device, so that it can be recorded and replayed.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

_LOG2_E = 1.4426950408889634


# What differs from step to step must not have Triton compile another kernel.
@triton.jit(do_not_specialize=["table_row_stride", "table_column_stride"])
def _attend_kernel(
    query_ptr, keys_ptr, values_ptr, out_ptr, parts_ptr, maxima_ptr, sums_ptr,
    tile_sequences_ptr, tile_firsts_ptr, query_starts_ptr, contexts_ptr, tables_ptr,
    scale, query_stride, block_stride, table_row_stride, table_column_stride, kv_heads, size,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, DIM: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    tile, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    sequence = tl.load(tile_sequences_ptr + tile)
    first = tl.load(tile_firsts_ptr + tile)
    start = tl.load(query_starts_ptr + sequence)
    length = tl.load(query_starts_ptr + sequence + 1) - start
    context = tl.load(contexts_ptr + sequence)

    row = tl.arange(0, ROWS)
    token = first + row // GROUP
    head = kv_head * GROUP + row % GROUP
    column = tl.arange(0, DIM)
    # Where a group does not divide the tile, the last rows stay empty.
    real = (row < ROWS // GROUP * GROUP) & (token < length)
    wide = column < HEAD_DIM
    place = (start + token).to(tl.int64)
    query = tl.load(
        query_ptr + place[:, None] * query_stride + head[:, None] * HEAD_DIM + column[None, :],
        mask=real[:, None] & wide[None, :], other=0.0,
    )  # fmt: skip
    position = context - length + token

    # Keys that the tile's last token sees, and which of them are this split's: whole tiles of keys.
    seen = tl.minimum(context, context - length + first + ROWS // GROUP)
    share = tl.cdiv(tl.cdiv(seen, SPLITS), KEYS) * KEYS
    begin = split * share
    end = tl.minimum(begin + share, seen)

    maximum = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, DIM], tl.float32)
    for at in range(begin, end, KEYS):
        key_position = at + tl.arange(0, KEYS)
        there = key_position < end
        block = tl.load(
            tables_ptr + sequence * table_row_stride + key_position // size * table_column_stride,
            mask=there, other=0,
        ).to(tl.int64)  # fmt: skip
        where = block * block_stride + (kv_head * size + key_position % size) * HEAD_DIM
        key = tl.load(
            keys_ptr + where[None, :] + column[:, None], mask=there[None, :] & wide[:, None], other=0.0
        )
        score = tl.dot(query, key, input_precision="ieee") * scale
        visible = there[None, :] & (key_position[None, :] <= position[:, None])
        score = tl.where(visible, score, float("-inf"))
        higher = tl.maximum(maximum, tl.max(score, axis=1))
        # A row that has seen no key yet has no maximum; zero will do.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weight = tl.exp2(score - base[:, None])
        fade = tl.exp2(maximum - base)
        total = total * fade + tl.sum(weight, axis=1)
        value = tl.load(
            values_ptr + where[:, None] + column[None, :], mask=there[:, None] & wide[None, :], other=0.0
        )
        mixed = mixed * fade[:, None] + tl.dot(weight.to(value.dtype), value, input_precision="ieee")
        maximum = higher

    heads = kv_heads * GROUP
    if SPLITS == 1:
        result = mixed / tl.where(total > 0, total, 1.0)[:, None]
        to = (place * heads + head)[:, None] * HEAD_DIM + column[None, :]
        tl.store(out_ptr + to, result.to(out_ptr.dtype.element_ty), mask=real[:, None] & wide[None, :])
    else:
        part = (place * heads + head) * SPLITS + split
        tl.store(maxima_ptr + part, maximum, mask=real)
        tl.store(sums_ptr + part, total, mask=real)
        to = part[:, None] * HEAD_DIM + column[None, :]
        tl.store(parts_ptr + to, mixed, mask=(real & (total > 0))[:, None] & wide[None, :])


@triton.jit
def _join_kernel(
    parts_ptr, maxima_ptr, sums_ptr, out_ptr, HEAD_DIM: tl.constexpr, DIM: tl.constexpr, SPLITS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, SPLITS)
    column = tl.arange(0, DIM)
    wide = column < HEAD_DIM
    sums = tl.load(sums_ptr + row * SPLITS + split)
    maxima = tl.load(maxima_ptr + row * SPLITS + split)
    used = sums > 0
    highest = tl.max(maxima, axis=0)
    weight = tl.where(used, tl.exp2(maxima - tl.where(highest == float("-inf"), 0.0, highest)), 0.0)
    part = tl.load(
        parts_ptr + (row * SPLITS + split)[:, None] * HEAD_DIM + column[None, :],
        mask=used[:, None] & wide[None, :], other=0.0,
    )  # fmt: skip
    total = tl.sum(weight * sums, axis=0)
    result = tl.sum(part * weight[:, None], axis=0) / tl.where(total > 0, total, 1.0)
    tl.store(out_ptr + row * HEAD_DIM + column, result.to(out_ptr.dtype.element_ty), mask=wide)


@dataclass(frozen=True, slots=True)
class Tiles:
    """Queries cut for one launch. All tensors are int32 on the device."""

    #: The sequence of each tile, and its first token counted from the sequence's first in this step, [tiles].
    sequences: Tensor
    firsts: Tensor
    #: Rows of a tile, tokens × group, a power of two.
    rows: int
    #: Keys that a program looks at together, a power of two.
    keys: int
    #: Programs that share a tile's keys, a power of two; more than one only where each tile is one token.
    splits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequences:
    """A step's sequences as the kernel reads them. All tensors are int32 on the device."""

    #: [sequences + 1]
    query_starts: Tensor
    #: [sequences]; 0 attends to nothing and yields zeros.
    contexts: Tensor
    #: [sequences, blocks], with any strides.
    tables: Tensor


def attend(
    query: Tensor, keys: Tensor, values: Tensor, sequences: Sequences, tiles: Tiles, out: Tensor
) -> None:
    """Write the tiles' rows of out [tokens, heads, head_dim].

    query [tokens, heads, head_dim], heads side by side; keys, values [blocks, kv_heads, size, head_dim].
    """
    tokens, heads, head_dim = query.shape
    _, kv_heads, size, _ = keys.shape
    group, dim = heads // kv_heads, max(16, triton.next_power_of_2(head_dim))
    parts = maxima = sums = out
    if tiles.splits > 1:
        maxima, sums = torch.empty((2, tokens, heads, tiles.splits), dtype=torch.float32, device=query.device)
        parts = maxima.new_empty(tokens, heads, tiles.splits, head_dim)
    _attend_kernel[(len(tiles.sequences), kv_heads, tiles.splits)](
        query, keys, values, out, parts, maxima, sums,
        tiles.sequences, tiles.firsts, sequences.query_starts, sequences.contexts, sequences.tables,
        head_dim**-0.5 * _LOG2_E, query.stride(0), keys.stride(0), *sequences.tables.stride(), kv_heads, size,
        GROUP=group, HEAD_DIM=head_dim, DIM=dim,
        ROWS=tiles.rows, KEYS=tiles.keys, SPLITS=tiles.splits,
        num_warps=8 if tiles.rows >= 128 else 4, num_stages=2,
    )  # fmt: skip
    if tiles.splits > 1:
        rows = len(tiles.sequences) * heads
        _join_kernel[(rows,)](parts, maxima, sums, out, HEAD_DIM=head_dim, DIM=dim, SPLITS=tiles.splits)
