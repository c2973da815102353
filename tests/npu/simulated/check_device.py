"""The device's functions against the CPU's, its fallbacks, and what it refuses before anything runs."""

import logging
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.batch import AttentionMetadata
from model.config import EngineConfig
from model.devices import CacheShape, cpu, cpu_torch, npu, npu_attention, npu_chips
from model.errors import ConfigError

WHERE = npu.place(0)
CHIP = npu_chips.this_chip()
DTYPE = torch.float16
CLOSE = {"rtol": 2**-8, "atol": 2**-7}


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DTYPE)


def equal(found: Tensor, expected: Tensor) -> None:
    assert found.device == WHERE
    torch.testing.assert_close(found.cpu(), expected, **CLOSE)


@pytest.mark.parametrize("tokens", [1, 7])
def test_norms_and_gate(tokens: int) -> None:
    x, delta, weight = draw(tokens, 64), draw(tokens, 64, seed=1), draw(64, seed=2)
    equal(npu.norm(x.to(WHERE), weight.to(WHERE), 1e-5), cpu.norm(x, weight, 1e-5))
    residual = x.to(WHERE)
    found = npu.add_norm(residual, delta.to(WHERE), weight.to(WHERE), 1e-5)
    equal(found, cpu.add_norm(x, delta, weight, 1e-5))
    equal(residual, x)
    equal(npu.gate(x.to(WHERE)), cpu.gate(x))


@pytest.mark.parametrize("head_dim", [16, 64, 128])
def test_rotary_of_a_view(head_dim: int) -> None:
    """Queries and keys as the merged projection gives them, with the values behind."""
    heads = draw(5, 6, head_dim)
    angles = draw(5, head_dim // 2, seed=1).float()
    cos, sin = angles.cos().to(DTYPE), angles.sin().to(DTYPE)
    found = heads.to(WHERE)
    npu.rotate(found[:, :4], cos.to(WHERE), sin.to(WHERE))
    cpu.rotate(heads[:, :4], cos, sin)
    equal(found, heads)


@pytest.mark.parametrize("biased", [True, False])
def test_projection(biased: bool) -> None:
    x, weight, bias = draw(5, 32), draw(48, 32, seed=1), draw(48, seed=2) if biased else None
    found = npu.projection(weight.to(WHERE), bias.to(WHERE) if bias is not None else None)(x.to(WHERE))
    equal(found, cpu.projection(weight, bias)(x))


#: How a chip attends, first by the operations that it is meant to have.
WAYS = ["own", *(["public"] if CHIP.name == "310P" else []), "torch"]
sequences = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 300)), min_size=1, max_size=4)


@settings(max_examples=25)
@given(
    lengths=sequences,
    block_size=st.sampled_from([128, 256, 350, 1000]),
    head_dim=st.sampled_from([16, 64, 128]),
    way=st.sampled_from(WAYS),
    found=st.booleans(),
)
@example(lengths=[(1, 40), (1, 40), (5, 3)], block_size=128, head_dim=64, way="own", found=True)
def test_attention_in_every_phase(
    lengths: list[tuple[int, int]], block_size: int, head_dim: int, way: str, found: bool
) -> None:
    """Decoding, whole prompts, chunks with a past and all in one step; blocks of one page and of several.

    Over a cache that has the past already, and, if `found`, with tokens that are written where nobody reads.
    """
    lengths = sorted((min(count, block_size), past) for count, past in lengths)
    lengths.sort(key=lambda one: one[0] > 1)
    metadata, num_blocks = planned(lengths, block_size, found)
    heads, kv_heads = 4, 2
    shape = CacheShape(num_blocks, block_size, kv_heads, head_dim)
    tokens = int(metadata.query_starts[-1])
    query = draw(tokens, heads, head_dim)
    key, value = draw(tokens, kv_heads, head_dim, seed=1), draw(tokens, kv_heads, head_dim, seed=2)
    with pytest.MonkeyPatch.context() as patch:
        if way != "own":
            patch.setattr(npu_attention, "way", lambda: way)
        host = cpu.allocate_cache(shape, DTYPE, torch.device("cpu"))
        device = npu.allocate_cache(shape, DTYPE, WHERE)
        past, past_tokens = before(metadata, lengths, block_size)
        if past is not None:
            old = [
                draw(past_tokens, count, head_dim, seed=9 + count) for count in (heads, kv_heads, kv_heads)
            ]
            cpu_torch.attention(past, heads, kv_heads, head_dim)(*old, host)
            npu.attention(past, kv_heads, WHERE)(*(part.to(WHERE) for part in old), device)
        expected = cpu_torch.attention(metadata, heads, kv_heads, head_dim)(query, key, value, host)
        out = npu.attention(metadata, kv_heads, WHERE)(*(p.to(WHERE) for p in (query, key, value)), device)
    equal(out, expected)


def planned(lengths: list[tuple[int, int]], block_size: int, found: bool) -> tuple[AttentionMetadata, int]:
    """Metadata of sequences (tokens, past), whose blocks are neither in order nor side by side."""
    queries = np.array([count for count, _ in lengths], np.int32)
    contexts = np.array([count + past for count, past in lengths], np.int32)
    counts = -(-contexts // block_size)
    num_blocks = 1 + int(counts.sum())
    free = list(range(1, num_blocks))[::-1]
    tables = np.zeros((len(lengths), int(counts.max())), np.int32)
    slots: list[int] = []
    for row, (count, past) in enumerate(lengths):
        tables[row, : counts[row]] = [free.pop() for _ in range(counts[row])]
        for position in range(past, past + count):
            block = int(tables[row, position // block_size])
            slots.append(block * block_size + position % block_size)
    if found:  # of sequences that decode, the key is there already
        for row, (count, past) in enumerate(lengths):
            if count == 1 and past:
                slots[row] = past % block_size
    metadata = AttentionMetadata(
        num_decodes=int((queries == 1).sum()),
        query_starts=np.concatenate(([0], np.cumsum(queries))).astype(np.int32),
        context_lens=contexts,
        block_tables=tables,
        slot_mapping=np.array(slots, np.int64),
        block_size=block_size,
    )
    return metadata, num_blocks


def before(
    metadata: AttentionMetadata, lengths: list[tuple[int, int]], block_size: int
) -> tuple[AttentionMetadata | None, int]:
    """The step that computed the past of these sequences, and the last token's key where that is found."""
    rows = [row for row, (_, past) in enumerate(lengths) if past]
    if not rows:
        return None, 0
    counts = [lengths[row][1] + (lengths[row][0] == 1) for row in rows]
    order = sorted(range(len(rows)), key=lambda at: counts[at] > 1)
    rows, counts = [rows[at] for at in order], [counts[at] for at in order]
    slots = [
        int(metadata.block_tables[row, position // block_size]) * block_size + position % block_size
        for row, count in zip(rows, counts, strict=True)
        for position in range(count)
    ]
    step = AttentionMetadata(
        num_decodes=sum(count == 1 for count in counts),
        query_starts=np.concatenate(([0], np.cumsum(counts))).astype(np.int32),
        context_lens=np.array(counts, np.int32),
        block_tables=metadata.block_tables[rows],
        slot_mapping=np.array(slots, np.int64),
        block_size=block_size,
    )
    return step, sum(counts)


def test_dtypes() -> None:
    own = [str(dtype).removeprefix("torch.") for dtype in CHIP.dtypes]
    for name in ("bfloat16", "float16"):
        if name in own:
            assert npu.dtype(name, "float32") == getattr(torch, name)
            assert npu.dtype("auto", name) == getattr(torch, name)
        else:
            with pytest.raises(ConfigError, match="does not compute in bfloat16: set dtype to float16"):
                npu.dtype(name, "float32")
            assert npu.dtype("auto", name) == torch.float16
    with pytest.raises(ConfigError, match="does not compute in float32"):
        npu.dtype("float32", "float32")


def test_spare_memory_leaves_room_for_what_ranks_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HCCL_BUFFSIZE", "100")
    free, _ = torch.npu.mem_get_info()
    assert npu.spare_bytes(1) == pytest.approx(free * CHIP.cache_share, rel=0.01)
    assert npu.spare_bytes(1) - npu.spare_bytes(2) == pytest.approx(200 * 2**20, rel=0.01)


def test_memory_in_use_is_what_tensors_take() -> None:
    before = npu.used_bytes()
    held = torch.zeros(2**26, dtype=torch.int8, device=WHERE)
    assert 2**26 <= npu.used_bytes() - before <= 2**27
    assert held.device == WHERE


def test_heads_that_no_chip_can_do() -> None:
    with pytest.raises(ConfigError, match="head_dim 24 is no multiple of 16"):
        npu.allocate_cache(CacheShape(2, 128, 2, 24), DTYPE, WHERE)


def test_unknown_chips() -> None:
    with pytest.raises(ConfigError, match="version 250 is not supported; known are 910B"):
        npu_chips.chip_of(250)


def test_no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    npu_chips.this_chip.cache_clear()
    monkeypatch.setattr(torch.npu, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match="no NPU is visible"):
        npu_chips.this_chip()
    npu_chips.this_chip.cache_clear()


def test_block_sizes() -> None:
    assert EngineConfig(path=".", device="npu").block_size == 128
    with pytest.raises(ConfigError, match="block_size must be 128, 256"):
        EngineConfig(path=".", device="npu", block_size=32)


def test_a_fallback_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    npu_chips.log_fallback.cache_clear()
    heads, half = draw(2, 2, 16).to(WHERE), draw(2, 8).to(WHERE)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            npu.rotate(heads, half, half)
    assert [record.message for record in caplog.records] == [
        f"rotary goes through plain torch on {CHIP.name}: the operations for it take no heads of 16"
    ]


def test_without_the_installed_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """An older torch_npu: everything goes through torch, and gives the same."""
    for module in (npu, npu_attention):
        monkeypatch.setattr(module, "is_available", lambda _: False)
    assert npu_attention.way() == "torch"
    test_norms_and_gate(3)
    test_rotary_of_a_view(64)
    test_projection(True)
