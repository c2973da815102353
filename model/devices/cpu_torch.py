"""The CPU's operations in plain torch: for machines without the kernels, and for what those can not do.

The functions are those of the device interface, over the same cache as the kernels'.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from numpy.typing import NDArray
from torch import Tensor

from model.batch import AttentionMetadata
from model.devices import Attend, LayerCache

#: Queries that a tile of prefill attention takes at most, and scores that it may hold.
_TILE = 64
_TILE_SCORES = 2**21

Ints = NDArray[np.signedinteger[Any]]


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm."""
    return F.rms_norm(x, x.shape[-1:], weight, eps)


def add_norm(residual: Tensor, delta: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Addition in place, then RMSNorm."""
    return F.rms_norm(residual.add_(delta), residual.shape[-1:], weight, eps)


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Half-split rotary in place."""
    first, second = heads.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    turned = (first * cos).addcmul_(second, sin, value=-1)
    second.mul_(cos).addcmul_(first, sin)
    first.copy_(turned)


def gate(gate_up: Tensor) -> Tensor:
    """silu(gate) * up."""
    gates, up = gate_up.chunk(2, dim=-1)
    return F.silu(gates).mul_(up)


def fits(group: int, head_dim: int) -> bool:  # noqa: ARG001
    """Anything."""
    return True


def attention(metadata: AttentionMetadata, heads: int, kv_heads: int, head_dim: int) -> Attend:  # noqa: ARG001
    """Prepare one step."""
    return _PagedAttention(metadata, kv_heads)


class _PagedAttention:
    """Decoded tokens visit the cache's blocks in place; chunks of prompts go through flash attention."""

    def __init__(self, metadata: AttentionMetadata, kv_heads: int) -> None:
        self.num_decodes = metadata.num_decodes
        blocks, offsets = np.divmod(metadata.slot_mapping[:, None], metadata.block_size)
        rows = (blocks * kv_heads + np.arange(kv_heads)) * metadata.block_size + offsets
        #: Rows of [blocks * kv_heads * block_size, head_dim] that this step writes.
        self.rows = torch.from_numpy(rows.ravel())
        self.visit = _BlockVisit(metadata) if self.num_decodes else None
        self.chunks = [
            _Chunk(start, end, torch.from_numpy(table[: -(-context // metadata.block_size)]), context)
            for start, end, context, table in zip(
                metadata.query_starts[:-1].tolist(),
                metadata.query_starts[1:].tolist(),
                metadata.context_lens.tolist(),
                metadata.block_tables,
                strict=True,
            )
        ][self.num_decodes :]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, cache: LayerCache) -> Tensor:
        """See `Attend`."""
        head_dim = query.shape[-1]
        for stored, new in ((cache.keys, key), (cache.values, value)):
            stored.view(-1, head_dim).index_copy_(0, self.rows, new.reshape(-1, head_dim))
        out = torch.empty(query.shape, dtype=query.dtype)
        if self.visit:
            out[: self.num_decodes] = self.visit.attend(query[: self.num_decodes], cache)
        for chunk in self.chunks:
            own = slice(chunk.start, chunk.end)
            out[own] = chunk.attend(query[own], key[own], value[own], cache)
        return out.flatten(1)


class _BlockVisit:
    """Attention of single tokens over blocks where they lie, without gathering keys and values.

    The few queries are gathered per block instead. Each block yields a part of a softmax, and the parts of a
    sequence are added up under their common maximum. Blocks that lie too scattered, or that several sequences
    share, are gathered after all.
    """

    def __init__(self, metadata: AttentionMetadata) -> None:
        contexts = metadata.context_lens[: metadata.num_decodes]
        counts = -(-contexts // metadata.block_size)
        #: Keys of a block that are looked at: where a block is a whole sequence, those of the longest.
        self.size = size = min(metadata.block_size, int(contexts.max()))
        columns = np.arange(metadata.block_tables.shape[1])
        used = columns < counts[:, None]
        blocks = metadata.block_tables[: metadata.num_decodes][used]
        owners = np.repeat(np.arange(metadata.num_decodes), counts)
        lengths = np.minimum(contexts[:, None] - columns * metadata.block_size, size)[used]
        first, last = int(blocks.min()), int(blocks.max()) + 1
        shared = len(np.unique(blocks)) < len(blocks)
        in_place = not shared and last - first <= 2 * len(blocks)
        #: The visited blocks: a range of the cache as it lies, with others' blocks in between, or a list.
        self.span: slice | Tensor = slice(first, last) if in_place else torch.from_numpy(blocks)
        places: Ints = blocks - first if in_place else np.arange(len(blocks))
        num_visited = int(places.max()) + 1
        #: The sequence of each visited block; others' blocks go to one too many, whose result is dropped.
        self.owners = torch.from_numpy(_scattered(num_visited, places, owners, metadata.num_decodes))
        #: The visited blocks of each sequence, padded with one too many, [sequences, blocks].
        by_sequence = np.full(used.shape, num_visited)
        by_sequence[used] = places
        self.by_sequence = torch.from_numpy(by_sequence)
        outside = np.arange(size) >= _scattered(num_visited, places, lengths, 0)[:, None]
        self.bias = torch.zeros(num_visited, 1, 1, size)
        self.bias.masked_fill_(torch.from_numpy(outside)[:, None, None], torch.finfo(torch.float32).min)

    def attend(self, query: Tensor, cache: LayerCache) -> Tensor:
        """[sequences, heads, head_dim] → the same."""
        keys, values = (part[:, :, : self.size][self.span] for part in cache)
        visited, kv_heads, size, head_dim = keys.shape
        group = query.shape[1] // kv_heads
        scaled = F.pad(query.flatten(1) * head_dim**-0.5, (0, 0, 0, 1))
        per_block = scaled.index_select(0, self.owners).view(-1, group, head_dim)
        scores = torch.bmm(per_block, keys.reshape(-1, size, head_dim).transpose(1, 2))
        scores = scores.view(visited, kv_heads, group, size).float().add_(self.bias)
        weights = scores.sub_(self._maxima(scores)[..., None]).exp_()
        partial = torch.bmm(
            weights.view(-1, group, size).to(values.dtype), values.reshape(-1, size, head_dim)
        )
        sequences = len(query) + 1
        sums = torch.zeros(sequences, kv_heads, group).index_add_(0, self.owners, weights.sum(-1))
        out = torch.zeros(sequences, kv_heads, group, head_dim)
        out.index_add_(0, self.owners, partial.view(visited, kv_heads, group, head_dim).float())
        return out.div_(sums[..., None])[:-1].flatten(1, 2).to(query.dtype)

    def _maxima(self, scores: Tensor) -> Tensor:
        """Scores [visited, kv_heads, group, size] → the largest of each block's sequence, without size."""
        by_block = F.pad(scores.amax(-1), (0, 0, 0, 0, 0, 1), value=-torch.inf)
        by_sequence = by_block[self.by_sequence].amax(1)
        return F.pad(by_sequence, (0, 0, 0, 0, 0, 1)).index_select(0, self.owners)


def _scattered(size: int, places: Ints, values: Ints, default: int) -> Ints:
    """A vector with these values at these places."""
    vector = np.full(size, default, np.int64)
    vector[places] = values
    return vector


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A piece of one prompt: attends to itself causally and, if it is not the first, to the cache before it.

    Queries go in tiles, each against all keys up to its end: two matrix products and a softmax. Two to three
    times faster than torch's flash attention on CPU, and the scores of a tile are linear in the context.
    """

    start: int
    end: int
    blocks: Tensor
    context: int

    def attend(self, query: Tensor, key: Tensor, value: Tensor, cache: LayerCache) -> Tensor:
        """query [tokens, heads, head_dim] → the same; the chunk's keys and values are cached already."""
        tokens, heads, head_dim = query.shape
        past = self.context - tokens
        keys, values = (self._gathered(part) for part in cache) if past else (key, value)
        keys, values = keys.transpose(0, 1), values.transpose(0, 1)
        kv_heads = len(keys)
        scaled = (query * head_dim**-0.5).view(tokens, kv_heads, -1, head_dim).permute(1, 2, 0, 3)
        tile = max(1, min(_TILE, _TILE_SCORES // (heads * self.context)))
        later = torch.full((tile, tile), -torch.inf, dtype=query.dtype).triu_(1)
        out = torch.empty_like(query)
        for first in range(0, tokens, tile):
            last = min(first + tile, tokens)
            rows, seen = last - first, past + last
            scores = torch.bmm(
                scaled[:, :, first:last].reshape(kv_heads, -1, head_dim), keys[:, :seen].transpose(1, 2)
            ).view(heads, rows, seen)
            scores[:, :, past + first :] += later[:rows, :rows]
            weights = scores.softmax(-1).view(kv_heads, -1, seen)
            mixed = torch.bmm(weights, values[:, :seen])
            out[first:last] = mixed.view(heads, rows, head_dim).transpose(0, 1)
        return out

    def _gathered(self, stored: Tensor) -> Tensor:
        """The sequence's keys or values up to the chunk's end, [context, kv_heads, head_dim]."""
        if len(self.blocks) == 1:
            return stored[self.blocks[0], :, : self.context].transpose(0, 1)
        return stored.index_select(0, self.blocks).transpose(1, 2).flatten(0, 1)[: self.context]
