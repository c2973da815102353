"""The CPU's paged attention against torch's scaled_dot_product_attention on each sequence by itself."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from model.batch import AttentionMetadata
from model.devices import CacheShape, cpu

KV_HEADS, GROUP, HEAD_DIM = 2, 3, 16


def metadata_of(lens: list[tuple[int, int]], blocks: list[int], block_size: int) -> AttentionMetadata:
    """`lens` are (tokens in this step, tokens in the cache after it); blocks are handed out in order."""
    free = iter(blocks)
    tables = np.zeros((len(lens), max(-(-context // block_size) for _, context in lens)), np.int32)
    slots = []
    for table, (count, context) in zip(tables, lens, strict=True):
        used = -(-context // block_size)
        table[:used] = [next(free) for _ in range(used)]
        slots += [
            table[at // block_size] * block_size + at % block_size for at in range(context - count, context)
        ]
    return AttentionMetadata(
        num_decodes=sum(count == 1 for count, _ in lens),
        query_starts=np.cumsum([0, *(count for count, _ in lens)]).astype(np.int32),
        context_lens=np.array([context for _, context in lens], np.int32),
        block_tables=tables,
        slot_mapping=np.array(slots, np.int64),
        block_size=block_size,
    )


@pytest.mark.parametrize("block_size", [1, 4, 16])
@pytest.mark.parametrize("spread", [1, 5, 20])
@pytest.mark.parametrize(
    "lens",
    [
        [(1, 1), (1, 9), (1, 33)],
        [(7, 7), (5, 21), (130, 150)],
        [(1, 12), (1, 40), (3, 3), (70, 71)],
    ],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 3e-2)])
def test_it_equals_attention_over_each_sequence(
    lens: list[tuple[int, int]], spread: int, block_size: int, dtype: torch.dtype, tolerance: float
) -> None:
    """Blocks that lie close are visited in place, those that lie `spread` apart are gathered."""
    generator = np.random.default_rng(0)
    needed = sum(-(-context // block_size) for _, context in lens)
    blocks = generator.permutation(needed) * spread
    metadata = metadata_of(lens, blocks.tolist(), block_size)
    torch.manual_seed(0)
    cache = cpu.allocate_cache(
        CacheShape(needed * spread, block_size, KV_HEADS, HEAD_DIM), dtype, torch.device("cpu")
    )
    for part in cache:
        part.normal_()  # what others left behind
    expected, queries, keys, values = [], [], [], []
    for (count, context), table in zip(lens, metadata.block_tables, strict=True):
        key, value = (torch.randn(context, KV_HEADS, HEAD_DIM).to(dtype) for _ in range(2))
        query = torch.randn(count, KV_HEADS * GROUP, HEAD_DIM).to(dtype)
        for at in range(context - count):
            cache.keys[table[at // block_size], :, at % block_size] = key[at]
            cache.values[table[at // block_size], :, at % block_size] = value[at]
        expected.append(reference(query, key, value))
        queries.append(query)
        keys.append(key[context - count :])
        values.append(value[context - count :])
    attend = cpu.attention(metadata, KV_HEADS, torch.device("cpu"))
    found = attend(torch.cat(queries), torch.cat(keys), torch.cat(values), cache)
    torch.testing.assert_close(found.float(), torch.cat(expected), rtol=0, atol=tolerance)


def reference(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    count, context = len(query), len(key)
    mask = torch.ones(count, context, dtype=torch.bool).tril(context - count)
    heads = (part.float().transpose(0, 1) for part in (query, key, value))
    return F.scaled_dot_product_attention(*heads, attn_mask=mask, enable_gqa=True).transpose(0, 1).flatten(1)


def test_rotary_is_the_complex_rotation_of_the_halves() -> None:
    heads = torch.randn(5, 3, 8)
    angles = torch.randn(5, 4)
    turned = torch.complex(heads[..., :4], heads[..., 4:]) * torch.polar(torch.ones(5, 4), angles)[:, None]
    cpu.rotate(heads, angles.cos(), angles.sin())
    torch.testing.assert_close(heads, torch.cat((turned.real, turned.imag), -1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_projection_is_torchs_linear(dtype: torch.dtype) -> None:
    x, weight, bias = torch.randn(7, 64).to(dtype), torch.randn(96, 64).to(dtype), torch.randn(96).to(dtype)
    for own in (None, bias):
        torch.testing.assert_close(
            cpu.projection(weight, own)(x), F.linear(x, weight, own), rtol=0.02, atol=0.1
        )
