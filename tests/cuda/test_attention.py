"""Attention over the paged cache and the writing of it, against softmax(q k) v of each sequence by itself."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from model.batch import AttentionMetadata
from model.devices import CacheShape, LayerCache, cuda
from model.devices.cuda_attention import splits
from model.devices.cuda_kernels import kv_write
from tests.attention import metadata_of, reference
from tests.cuda import card
from tests.cuda.measure import Record, check, each_dtype, there

#: For values of a normal distribution, whose weights are rounded to the dtype.
TOLERANCES = {torch.float32: 3e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@dataclass(frozen=True)
class Case:
    """A step: sequences of (tokens in this step, tokens in the cache after it), those of one token first."""

    lens: tuple[tuple[int, int], ...]
    block_size: int = 16
    #: kv heads and query heads to each.
    heads: tuple[int, int] = (2, 2)
    head_dim: int = 64


MIXED = ((1, 40), (1, 1), (5, 5), (9, 33))
CASES = {
    "mixed": Case(MIXED),
    "no group": Case(MIXED, heads=(3, 1)),
    "a group of 4, 128 wide": Case(MIXED, heads=(1, 4), head_dim=128),
    "a group of 6": Case(MIXED, heads=(1, 6)),
    "a group of 20": Case(((1, 9), (3, 20)), heads=(1, 20)),
    "80 wide": Case(MIXED, head_dim=80),
    "24 wide": Case(((1, 70), (3, 9)), head_dim=24),
    "8 wide": Case(((1, 70), (3, 9)), head_dim=8),
    "256 wide": Case(((1, 20), (3, 9)), heads=(1, 2), head_dim=256),
    "blocks of 1": Case(((1, 30), (4, 9)), block_size=1),
    "blocks of 3": Case(((1, 70), (4, 9)), block_size=3),
    "blocks of 128": Case(((1, 300), (4, 140)), block_size=128),
    "contiguous": Case(((1, 90), (70, 110)), block_size=200),
    "a prompt of several tiles": Case(((80, 80), (40, 100)), heads=(1, 4)),
    "decoding only": Case(tuple((1, 1 + 13 * number) for number in range(9)), heads=(1, 2)),
    "long and alone, split 16 ways": Case(((1, 1000),), heads=(1, 2)),
    "long and a short one, split 8 ways": Case(((1, 700), (1, 3)), heads=(1, 3), block_size=32),
}


@dataclass(frozen=True)
class Step:
    """A case's tensors: what is given to attention, and what it is to give."""

    metadata: AttentionMetadata
    cache: LayerCache
    parts: tuple[Tensor, ...]
    expected: Tensor


def step_of(case: Case, dtype: torch.dtype) -> Step:
    """All that does not belong to a sequence is NaN, in the cache too, so that whatever reads it shows."""
    random = np.random.default_rng(0)
    torch.manual_seed(0)
    kv_heads, group = case.heads
    counts = [-(-context // case.block_size) for _, context in case.lens]
    numbers = 1 + random.permutation(sum(counts))
    tables = np.zeros((len(counts), max(counts)), np.int32)
    shape = CacheShape(len(numbers) + 1, case.block_size, kv_heads, case.head_dim)
    cache = LayerCache(
        *(part.fill_(torch.nan).cpu() for part in cuda.allocate_cache(shape, dtype, card.WHERE))
    )
    slots: list[int] = []
    merged, expected = [], []
    for row, ((count, context), blocks) in enumerate(zip(case.lens, counts, strict=True)):
        tables[row, :blocks], numbers = numbers[:blocks], numbers[blocks:]
        key, value = (torch.randn(context, kv_heads, case.head_dim).to(dtype) for _ in range(2))
        positions = np.arange(context)
        block, offset = tables[row, positions // case.block_size], positions % case.block_size
        past = context - count
        for part, values in ((cache.keys, key), (cache.values, value)):
            part[block[:past], :, offset[:past]] = values[:past]
        slots += (block * case.block_size + offset)[past:].tolist()
        query = torch.randn(count, kv_heads * group, case.head_dim).to(dtype)
        merged.append(torch.cat((query, key[past:], value[past:]), 1))
        expected.append(reference(query, key, value))
    metadata = metadata_of(case.lens, tables, slots, case.block_size)
    parts = there(torch.cat(merged)).split([kv_heads * group, kv_heads, kv_heads], 1)
    return Step(metadata, LayerCache(*map(there, cache)), parts, torch.cat(expected))


@each_dtype
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_attention(
    record_property: Record, dtype: torch.dtype, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.devices.cuda_card.processors", lambda: 8)
    step = step_of(case, dtype)
    attend = cuda.attention(step.metadata, case.heads[0], card.WHERE)
    found = attend(*step.parts, step.cache)
    kernel = "attention, split" if "split" in name_of(case) else "attention"
    check(record_property, kernel, found, step.expected, TOLERANCES[dtype])


def name_of(case: Case) -> str:
    return next(name for name, one in CASES.items() if one is case)


def test_keys_are_split_where_few_sequences_leave_processors_idle() -> None:
    assert [splits(programs, 132) for programs in (1, 8, 64, 256, 264, 512)] == [64, 64, 8, 2, 1, 1]


@each_dtype
@pytest.mark.parametrize(("kv_heads", "head_dim", "size"), [(1, 64, 16), (3, 24, 1), (2, 128, 7)])
def test_keys_and_values_go_where_the_slots_say(
    record_property: Record, dtype: torch.dtype, kv_heads: int, head_dim: int, size: int
) -> None:
    """And nowhere else: a slot of -1 writes nothing."""
    torch.manual_seed(0)
    merged = torch.randn(5, 2 * kv_heads + 1, head_dim).to(dtype)
    key, value = merged[:, :kv_heads], merged[:, kv_heads : 2 * kv_heads]
    empty = torch.randn(2, 4 * 7 // size + 1, kv_heads, size, head_dim).to(dtype)
    cache = there(empty.clone())
    slots = torch.tensor([9, 0, -1, 3, 21], dtype=torch.int32)
    on_card = there(merged)
    kv_write.write(
        on_card[:, :kv_heads], on_card[:, kv_heads : 2 * kv_heads], cache[0], cache[1], there(slots)
    )
    for token, slot in enumerate(slots.tolist()):
        if slot >= 0:
            empty[0, slot // size, :, slot % size] = key[token]
            empty[1, slot // size, :, slot % size] = value[token]
    assert cache.cpu().equal(empty)
    check(record_property, "kv_write", cache, empty.double(), 0.0)


def test_weights_far_apart_neither_overflow_nor_vanish() -> None:
    """Scores of thousands: the largest takes all."""
    key = torch.zeros(40, 1, 16)
    key[:, 0, 0] = torch.linspace(-4000, 4000, 40)
    value = torch.arange(40.0)[:, None, None].expand(40, 1, 16).contiguous()
    cache = cuda.allocate_cache(CacheShape(4, 16, 1, 16), torch.float32, card.WHERE)
    metadata = AttentionMetadata(
        num_decodes=0,
        query_starts=np.array([0, 40], np.int32),
        context_lens=np.array([40], np.int32),
        block_tables=np.array([[1, 2, 3]], np.int32),
        slot_mapping=np.arange(16, 56),
        block_size=16,
    )
    query = torch.full((40, 1, 16), 9.0)
    found = cuda.attention(metadata, 1, card.WHERE)(*map(there, (query, key, value)), cache)
    torch.testing.assert_close(found.cpu(), value.flatten(1), rtol=1e-6, atol=1e-30)
