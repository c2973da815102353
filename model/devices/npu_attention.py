"""Attention of one step on an NPU, and the cache that it reads: a way for each chip, and plain torch.

The cache is made of pages. A block of the engine is one page or several in a row: so a contiguous cache,
whose block is a whole sequence, is read by the same operations as a paged one. What a step needs is prepared
once, on the host as far as it can be; nothing here waits for the device.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from numpy.typing import NDArray
from torch import Tensor

from model.batch import AttentionMetadata
from model.devices import Attend, CacheShape, LayerCache, npu_ops, npu_public_ops, npu_torch
from model.devices.npu_chips import Chip, is_available, this_chip
from model.errors import ConfigError

#: fused: 910B's one operation for every phase. atb: 310P's three. public: what 310P has of torch_npu's own
#: where NNAL is not installed. torch: none of them is.
Way = Literal["fused", "atb", "public", "torch"]

_NEEDS: dict[Way, tuple[str, ...]] = {
    "fused": ("npu_scatter_pa_kv_cache", "npu_fused_infer_attention_score"),
    "atb": (
        "_npu_reshape_and_cache",
        "_npu_paged_attention",
        "_npu_flash_attention",
        "_npu_paged_attention_splitfuse",
    ),
    "public": ("npu_incre_flash_attention", "npu_prompt_flash_attention"),
}
#: Tokens of a page: what both chips are documented and tuned for.
_PAGE = 128
_LONGEST_PAGE = 512
#: 310P's tiles.
_TILE = 16

Ints = NDArray[np.signedinteger[Any]]


def way() -> Way:
    """How this machine attends."""
    return next((name for name, needed in _NEEDS.items() if all(map(is_available, needed))), "torch")


def page_size(chip: Chip, block_size: int, head_dim: int) -> int:
    """Tokens of a page for blocks of this size. Raises ConfigError for heads that the chip can not do."""
    if head_dim % _TILE:
        raise ConfigError(
            f"head_dim {head_dim} is no multiple of {_TILE}: {chip.name} can not run this model"
        )
    if chip.page_numbers:
        return min(_PAGE, chip.page_numbers // head_dim // _TILE * _TILE)
    return fused_page(block_size)


def fused_page(block_size: int) -> int:
    """Tokens of a page on a 910B for blocks of this size, whatever the heads."""
    return block_size if block_size % _PAGE == 0 and block_size <= _LONGEST_PAGE else _PAGE


def allocate_cache(shape: CacheShape, dtype: torch.dtype, where: torch.device) -> LayerCache:
    """Zeros, since attention may read past a sequence's end and weigh what it finds by zero."""
    chip = this_chip()
    page = page_size(chip, shape.block_size, shape.head_dim)
    pages = shape.num_blocks * -(-shape.block_size // page)
    if way() != "atb":
        size = (pages, page, shape.kv_heads, shape.head_dim)
        return LayerCache(*(torch.zeros(size, dtype=dtype, device=where) for _ in range(2)))
    size = (pages, shape.kv_heads * shape.head_dim // _TILE, page, _TILE)
    return LayerCache(*(npu_ops.to_nz(torch.zeros(size, dtype=dtype, device=where)) for _ in range(2)))


def attention(metadata: AttentionMetadata, kv_heads: int, where: torch.device) -> Attend:
    """Prepare one step; for heads of which size, the first layer's queries tell."""
    prepared: Attend | None = None

    def attend(query: Tensor, key: Tensor, value: Tensor, cache: LayerCache) -> Tensor:
        nonlocal prepared
        if prepared is None:
            step = _Step.of(metadata, page_size(this_chip(), metadata.block_size, query.shape[2]))
            prepared = _WAYS[way()](step, kv_heads, where)
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        return prepared(query, key, value, cache)

    return attend


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """A step in pages."""

    num_decodes: int
    query_lens: Ints
    contexts: Ints
    #: [sequences, pages]
    tables: Ints
    #: Where the kept tokens go.
    slots: Ints
    #: The tokens that are written, or None for all.
    kept: Ints | None
    #: Each sequence has one stretch of the cache.
    is_contiguous: bool

    @classmethod
    def of(cls, metadata: AttentionMetadata, page: int) -> "_Step":
        size = metadata.block_size
        each = -(-size // page)
        width = -(-int(metadata.context_lens.max()) // page)
        tables = in_pages(metadata.block_tables, each)
        blocks, offsets = np.divmod(metadata.slot_mapping, size)
        slots = blocks * each * page + offsets
        # What was found in the cache is written where nobody reads, by several maybe: the kernels want each
        # place once.
        first = np.unique(slots, return_index=True)[1]
        kept = np.sort(first) if len(first) < len(slots) else None
        return cls(
            num_decodes=metadata.num_decodes,
            query_lens=np.diff(metadata.query_starts),
            contexts=metadata.context_lens,
            tables=tables[:, :width].astype(np.int32),
            slots=(slots if kept is None else slots[kept]).astype(np.int32),
            kept=kept,
            is_contiguous=each > 1,
        )

    def begins(self, rows: slice) -> bool:
        """Whether these sequences have nothing in the cache but this step's."""
        return bool((self.query_lens[rows] == self.contexts[rows]).all())


def in_pages(tables: Ints, each: int) -> Ints:
    """Tables of blocks of so many pages, [sequences, blocks] → [sequences, blocks * each]."""
    return (tables[:, :, None] * each + np.arange(each)).reshape(len(tables), -1)


def _on(where: torch.device, values: Ints) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(where)


class _Writer:
    """Which tokens' keys and values go where."""

    def __init__(self, step: _Step, where: torch.device) -> None:
        self.slots = _on(where, step.slots)
        self.kept = None if step.kept is None else _on(where, step.kept)

    def chosen(self, part: Tensor) -> Tensor:
        return part if self.kept is None else part[self.kept]


class _Fused:
    """910B: one operation for decoding, prompts and both together."""

    def __init__(self, step: _Step, kv_heads: int, where: torch.device) -> None:
        self.kv_heads = kv_heads
        self.writer = _Writer(step, where)
        self.mask = fused_mask(where)
        self.query_ends: list[int] = np.cumsum(step.query_lens).tolist()
        #: Of whole prompts over contiguous caches the keys are read as they come, not from the cache.
        self.is_raw = step.is_contiguous and step.begins(slice(None))
        self.contexts: list[int] = self.query_ends if self.is_raw else step.contexts.tolist()
        self.tables = None if self.is_raw else _on(where, step.tables)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, cache: LayerCache) -> Tensor:
        chosen = self.writer.chosen
        npu_ops.scatter_kv(chosen(key), chosen(value), *cache, self.writer.slots)
        keys, values = (key, value) if self.is_raw else cache
        return npu_ops.fused_attention(
            query, keys, values, self.mask, self.query_ends, self.contexts, self.kv_heads, self.tables
        ).flatten(1)


class _Atb:
    """310P: one operation for decoding, one for whole prompts, one for prompts that have a past."""

    def __init__(self, step: _Step, kv_heads: int, where: torch.device) -> None:
        self.kv_heads = kv_heads
        self.writer = _Writer(step, where)
        self.num_decodes = count = step.num_decodes
        self.tables, self.contexts = _on(where, step.tables), _on(where, step.contexts)
        self.query_lens = torch.from_numpy(step.query_lens[count:].astype(np.int32))
        self.mask: Tensor | None = None
        self.padding = 0
        if not len(self.query_lens):
            return
        self.begins = step.begins(slice(count, None))
        if self.begins:
            self.padding = -int(self.query_lens.sum()) % _TILE
            self.query_lens[-1] += self.padding
            self.mask = _causal_mask(_rounded(int(self.query_lens.max())), where)
        else:
            self.mask = _chunk_mask(step.query_lens[count:], step.contexts[count:]).to(where)
            self.mask = npu_ops.to_nz(self.mask)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, cache: LayerCache) -> Tensor:
        chosen, count = self.writer.chosen, self.num_decodes
        npu_ops.reshape_and_cache(chosen(key), chosen(value), *cache, self.writer.slots)
        parts = []
        if count:
            parts.append(
                npu_ops.paged_attention(
                    query[:count], *cache, self.kv_heads, self.tables[:count], self.contexts[:count]
                )
            )
        if self.mask is not None:
            parts.append(self._prompts(query[count:], key[count:], value[count:], cache, self.mask))
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).flatten(1)

    def _prompts(self, query: Tensor, key: Tensor, value: Tensor, cache: LayerCache, mask: Tensor) -> Tensor:
        count = self.num_decodes
        if not self.begins:
            return npu_ops.splitfuse_attention(
                query,
                *cache,
                self.kv_heads,
                mask,
                self.tables[count:],
                self.query_lens,
                self.contexts[count:],
            )
        tokens = len(query)
        if self.padding:
            query, key, value = (F.pad(part, (0, 0, 0, 0, 0, self.padding)) for part in (query, key, value))
        return npu_ops.flash_attention(query, key, value, mask, self.query_lens)[:tokens]


class _Public:
    """310P without ATB: one operation for decoding, one for each whole prompt, plain torch for the rest."""

    def __init__(self, step: _Step, kv_heads: int, where: torch.device) -> None:
        self.kv_heads = kv_heads
        self.plain = _Torch(step, kv_heads, where)
        self.num_decodes = count = step.num_decodes
        self.tables = _on(where, step.tables[:count])
        self.contexts: list[int] = step.contexts[:count].tolist()
        self.begins = (step.query_lens == step.contexts).tolist()

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, cache: LayerCache) -> Tensor:
        self.plain.write(key, value, cache)
        parts = []
        for first in range(0, self.num_decodes, npu_public_ops.DECODE_ROWS):
            rows = slice(first, min(first + npu_public_ops.DECODE_ROWS, self.num_decodes))
            parts.append(
                npu_public_ops.decode_attention(
                    query[rows], *cache, self.kv_heads, self.tables[rows], self.contexts[rows]
                )
            )
        for row in range(self.num_decodes, len(self.begins)):
            own, _, _ = self.plain.sequences[row]
            if self.begins[row]:
                parts.append(self._prompt(query[own], key[own], value[own]))
            else:
                parts.append(self.plain.attend(row, query, cache))
        return torch.cat(parts).flatten(1)

    def _prompt(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Over so many tokens as the operation wants, the last of them nobody's, and a key for each query."""
        tokens, group = len(query), query.shape[1] // self.kv_heads
        padding = -tokens % npu_public_ops.PROMPT_TILE
        key, value = (part.repeat_interleave(group, dim=1) for part in (key, value))
        query, key, value = (F.pad(part, (0, 0, 0, 0, 0, padding)) for part in (query, key, value))
        mask = _prompt_mask(tokens + padding, query.device)
        return npu_public_ops.prompt_attention(query, key, value, mask)[:tokens]


class _Torch:
    """Sequence by sequence."""

    def __init__(self, step: _Step, kv_heads: int, where: torch.device) -> None:  # noqa: ARG002
        self.writer = _Writer(step, where)
        self.slots = self.writer.slots.long()
        ends = np.cumsum(step.query_lens).tolist()
        self.sequences = [
            (slice(first, last), _on(where, table).long(), context)
            for first, last, table, context in zip(
                [0, *ends], ends, step.tables, step.contexts.tolist(), strict=False
            )
        ]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, cache: LayerCache) -> Tensor:
        self.write(key, value, cache)
        return torch.cat([self.attend(row, query, cache) for row in range(len(self.sequences))]).flatten(1)

    def write(self, key: Tensor, value: Tensor, cache: LayerCache) -> None:
        """The step's keys and values to their slots."""
        chosen = self.writer.chosen
        npu_torch.write(chosen(key), chosen(value), cache, self.slots)

    def attend(self, row: int, query: Tensor, cache: LayerCache) -> Tensor:
        """One sequence's part of the step's queries."""
        own, table, context = self.sequences[row]
        return npu_torch.attend(query[own], cache, table[: -(-context // cache.keys.shape[1])], context)


_WAYS: dict[Way, Callable[[_Step, int, torch.device], Attend]] = {
    "fused": _Fused,
    "atb": _Atb,
    "public": _Public,
    "torch": _Torch,
}


@cache
def fused_mask(where: torch.device) -> Tensor:
    """1 where a key is not to be seen: the one mask of every length."""
    size = npu_ops.FUSED_MASK
    return torch.ones(size, size, dtype=torch.int8).triu_(1).to(where)


@lru_cache(maxsize=8)
def _causal_mask(size: int, where: torch.device) -> Tensor:
    """The mask of whole prompts up to this length, in 310P's format."""
    mask = torch.full((size, size), -torch.inf, dtype=torch.float16).triu_(1)
    return npu_ops.to_nz(_tiled(mask).to(where))


@lru_cache(maxsize=8)
def _prompt_mask(size: int, where: torch.device) -> Tensor:
    """True where a key is not to be seen, [size, size]."""
    return torch.ones(size, size, dtype=torch.bool).triu_(1).to(where)


def _chunk_mask(query_lens: Ints, contexts: Ints) -> Tensor:
    """A row for each query of chunks that have a past, -inf from its own position on."""
    positions = np.concatenate(
        [np.arange(end - length, end) for length, end in zip(query_lens, contexts, strict=True)]
    )
    hidden = np.arange(_rounded(int(contexts.max()))) > positions[:, None]
    mask = torch.zeros(_rounded(len(positions)), hidden.shape[1], dtype=torch.float16)
    mask[: len(positions)].masked_fill_(torch.from_numpy(hidden), -torch.inf)
    return _tiled(mask)


def _tiled(mask: Tensor) -> Tensor:
    """[rows, columns] → [1, columns / 16, rows, 16]"""
    return mask.view(len(mask), -1, _TILE).transpose(0, 1).contiguous()[None]


def _rounded(count: int) -> int:
    return -(-count // _TILE) * _TILE
