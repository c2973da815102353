"""A step's attention on the GPU: cuts it into launches and brings their integers to the device.

Single tokens and chunks of prompts are launched apart, each with the tiles that suit them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import torch
import triton
from numpy.typing import NDArray
from torch import Tensor

from model.batch import AttentionMetadata
from model.devices import Attend, LayerCache
from model.devices.cuda_kernels import attention, kv_write
from model.devices.cuda_kernels.attention import Sequences, Tiles
from model.transfer import upload

#: Rows of a tile: the least that a matrix product takes.
_FEWEST_ROWS = 16
#: By the width of a head, the most rows of a tile of a prompt and the keys that a program looks at together:
#: what fits into shared memory and registers from Ampere on. Checks in float32 have the least.
_SHAPES = ((128, (128, 64)), (256, (64, 32)))
_LEAST = (16, 16)
#: Most programs that share the keys of one sequence.
_MOST_SPLITS = 64
#: Integers of each kind begin at multiples of 16 bytes: for other addresses Triton compiles another kernel.
ALIGNED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedAttention:
    """One step, prepared: see `Attend`. Made of tensors on the device alone, so that it can be recorded."""

    sequences: Sequences
    #: Where each token's key and value go, -1 for nowhere, [tokens].
    slots: Tensor
    #: Each tile's sequence and first token: single tokens, which come first, and chunks.
    decodes: tuple[Tensor, Tensor]
    chunks: tuple[Tensor, Tensor]
    #: Rows of a chunk's tile.
    chunk_rows: int
    #: Of the GPU, to be kept busy.
    processors: int

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, cache: LayerCache) -> Tensor:
        """See `Attend`."""
        kv_write.write(key, value, *cache, self.slots)
        out = query.new_empty(query.shape)
        kv_heads = key.shape[1]
        _, keys = tile_shape(query)
        if count := len(self.decodes[0]):
            tiles = Tiles(
                *self.decodes,
                rows=_rows(query.shape[1] // kv_heads),
                keys=keys,
                splits=splits(count * kv_heads, self.processors),
            )
            attention.attend(query[:count], *cache, self.sequences, tiles, out[:count])
        if len(self.chunks[0]):
            tiles = Tiles(*self.chunks, rows=self.chunk_rows, keys=keys, splits=1)
            attention.attend(query, *cache, self.sequences, tiles, out)
        return out.flatten(1)


def prepare(metadata: AttentionMetadata, where: torch.device, processors: int) -> Attend:
    """One step as a batch describes it; how chunks are cut, the first layer's queries tell."""
    prepared: PagedAttention | None = None

    def attend(query: Tensor, key: Tensor, value: Tensor, cache: LayerCache) -> Tensor:
        nonlocal prepared
        if prepared is None:
            most_rows, _ = tile_shape(query)
            prepared = _prepared(metadata, query.shape[1] // key.shape[1], most_rows, where, processors)
        return prepared(query, key, value, cache)

    return attend


def splits(programs: int, processors: int) -> int:
    """Programs to share each tile's keys, so that there are two for each processor: a power of two."""
    return int(min(_MOST_SPLITS, triton.next_power_of_2(triton.cdiv(2 * processors, programs))))


def _rows(wanted: int) -> int:
    return max(_FEWEST_ROWS, int(triton.next_power_of_2(wanted)))


def tile_shape(heads: Tensor) -> tuple[int, int]:
    """The most rows of a tile and its keys for [tokens, heads, head_dim]."""
    if heads.element_size() > 2:
        return _LEAST
    return next((shape for width, shape in _SHAPES if heads.shape[2] <= width), _LEAST)


def _prepared(
    metadata: AttentionMetadata, group: int, most_rows: int, where: torch.device, processors: int
) -> PagedAttention:
    lengths = np.diff(metadata.query_starts)
    rows = max(_rows(group), min(most_rows, _rows(int(lengths.max()) * group)))
    step = rows // group
    tiles = -(-lengths[metadata.num_decodes :] // step)
    # The last tile of a chunk has the most keys: it begins first.
    owners = np.repeat(np.arange(metadata.num_decodes, len(lengths)), tiles)[::-1]
    firsts = np.concatenate([np.zeros(0, np.int64), *(np.arange(count) * step for count in tiles)])[::-1]
    singles = np.arange(metadata.num_decodes)
    starts, contexts, slots, tables, *cut = _uploaded(
        where,
        metadata.query_starts, metadata.context_lens, metadata.slot_mapping, metadata.block_tables.ravel(),
        singles, np.zeros_like(singles), owners, firsts,
    )  # fmt: skip
    return PagedAttention(
        sequences=Sequences(
            query_starts=starts, contexts=contexts, tables=tables.view(metadata.block_tables.shape)
        ),
        slots=slots,
        decodes=(cut[0], cut[1]),
        chunks=(cut[2], cut[3]),
        chunk_rows=rows,
        processors=processors,
    )


def _uploaded(where: torch.device, *parts: NDArray[np.signedinteger]) -> Iterator[Tensor]:
    """Vectors of integers as int32 on the device, in one copy."""
    ends = list(accumulate((-(-len(part) // ALIGNED) * ALIGNED for part in parts), initial=0))
    packed = np.zeros(ends[-1], np.int32)
    for part, start in zip(parts, ends[:-1], strict=True):
        packed[start : start + len(part)] = part
    there = upload(packed, where)
    for part, (start, _) in zip(parts, pairwise(ends), strict=True):
        yield there[start : start + len(part)]
