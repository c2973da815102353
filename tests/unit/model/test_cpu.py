"""The CPU's operations against plain formulas: each library of kernels that this machine runs, and torch."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.batch import NULL_BLOCK, AttentionMetadata
from model.devices import CacheShape, cpu, cpu_kernels
from tests.attention import metadata_of, reference

HOST = torch.device("cpu")
IMPLEMENTATIONS = [*cpu_kernels.instruction_sets(), "torch"]
each_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
#: Within one rounding of the dtype, and of the sums before it.
each_dtype = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.bfloat16, 2**-7), (torch.float16, 2**-9)]
)


@contextmanager
def using(implementation: str, threads: int = 2) -> Iterator[None]:
    """Have the device compute by this library's kernels, or by torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                cpu, "KERNELS", {} if implementation == "torch" else cpu_kernels.load(implementation)
            )
            yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(shutil.which("c++") is None, reason="no compiler to build kernels with")
def test_kernels_were_built_and_the_best_is_in_use() -> None:
    """Where this fails after a change of the sources: `pip install -e .` builds them again."""
    assert cpu.kernels_in_use() == IMPLEMENTATIONS[0]
    with using("torch"):
        assert cpu.kernels_in_use() == "none"


def normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


@each_implementation
@each_dtype
@settings(max_examples=30)
@given(shape=st.tuples(st.integers(1, 70), st.integers(1, 400)), seed=st.integers(0, 999))
def test_norms(
    implementation: str, dtype: torch.dtype, tolerance: float, shape: tuple[int, int], seed: int
) -> None:
    torch.manual_seed(seed)
    residual, delta = (torch.randn(shape).to(dtype) for _ in range(2))
    weight = torch.randn(shape[1]).to(dtype)
    with using(implementation):
        found = cpu.norm(residual, weight, 1e-5)
        close(found, normed(residual.double(), weight.double(), 1e-5), 2 * tolerance)
        total = residual + delta
        found = cpu.add_norm(residual, delta, weight, 1e-5)
    assert residual.equal(total)
    close(found, normed(total.double(), weight.double(), 1e-5), 2 * tolerance)


@each_implementation
@each_dtype
@settings(max_examples=30)
@given(shape=st.tuples(st.integers(1, 70), st.integers(1, 400)), seed=st.integers(0, 999))
def test_the_gate(
    implementation: str, dtype: torch.dtype, tolerance: float, shape: tuple[int, int], seed: int
) -> None:
    torch.manual_seed(seed)
    rows, columns = shape
    gate_up = (torch.randn(rows, 2 * columns) * 30).to(dtype)
    gate, up = gate_up.double().chunk(2, -1)
    with using(implementation):
        close(cpu.gate(gate_up), gate / (1 + (-gate).exp()) * up, 2 * tolerance)


@each_implementation
def test_the_gate_at_its_ends(implementation: str) -> None:
    gates = torch.tensor([-1e38, -3e38, -200.0, -88.0, -87.0, 0.0, 88.0, 3e38, torch.nan])
    with using(implementation):
        found = cpu.gate(torch.stack((gates, torch.ones(9)), 0).reshape(1, 18)).flatten()
    assert found[:6].abs().max() < 1e-30
    assert found[6:8].equal(gates[6:8])
    assert found[8].isnan()


@each_implementation
@each_dtype
@settings(max_examples=30)
@given(shape=st.tuples(st.integers(1, 70), st.integers(1, 6), st.integers(1, 70)), seed=st.integers(0, 999))
def test_rotary_is_the_complex_rotation_of_the_halves(
    implementation: str, dtype: torch.dtype, tolerance: float, shape: tuple[int, int, int], seed: int
) -> None:
    """In place, on heads that lie among others."""
    torch.manual_seed(seed)
    tokens, heads, half = shape
    merged = torch.randn(tokens, heads + 2, 2 * half).to(dtype)
    before = merged.clone()
    angles = torch.randn(tokens, half)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    first, second = before[:, :heads].double().chunk(2, -1)
    turned = torch.complex(first, second) * torch.complex(cos.double(), sin.double())[:, None]
    with using(implementation):
        cpu.rotate(merged[:, :heads], cos, sin)
    close(merged[:, :heads], torch.cat((turned.real, turned.imag), -1), 2 * tolerance)
    assert merged[:, heads:].equal(before[:, heads:])


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_projection_is_torchs_linear(dtype: torch.dtype) -> None:
    x, weight, bias = torch.randn(7, 64).to(dtype), torch.randn(96, 64).to(dtype), torch.randn(96).to(dtype)
    for own in (None, bias):
        torch.testing.assert_close(
            cpu.projection(weight, own)(x), F.linear(x, weight, own), rtol=0.02, atol=0.1
        )


@pytest.mark.skipif(IMPLEMENTATIONS == ["torch"], reason="no kernels were built")
def test_kernels_refuse_rows_that_lie_apart() -> None:
    apart = torch.randn(4, 64)[:, ::2]
    with pytest.raises(ValueError, match="contiguous"):
        cpu.gate(apart)


@dataclass(frozen=True)
class Case:
    """A step: sequences of (tokens in this step, tokens in the cache after it), those of one token first.

    Each shares as many whole blocks with the first as both have, up to `shared`.
    """

    lens: list[tuple[int, int]]
    shared: int = 0
    block_size: int = 16
    spread: int = 1
    heads: tuple[int, int] = (2, 3)
    head_dim: int = 64


def check_attention(implementation: str, case: Case, dtype: torch.dtype, tolerance: float, seed: int) -> None:
    """A step by `implementation` against softmax(q k) v of each sequence by itself, in float64."""
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    kv_heads, group = case.heads
    size = case.block_size
    counts = [-(-context // size) for _, context in case.lens]
    owners = case.lens[0][1] // size
    shares = [0] + [min(case.shared, owners, context // size) for _, context in case.lens[1:]]
    numbers = 1 + random.permutation(sum(counts) * case.spread)
    cache = cpu.allocate_cache(CacheShape(len(numbers) + 1, size, kv_heads, case.head_dim), dtype, HOST)
    for part in cache:  # what others left behind: torch weighs it by zero, kernels do not look
        part.fill_(torch.nan) if by_kernels(implementation, case, dtype) else part.normal_()
    tables = np.zeros((len(counts), max(counts)), np.int32)
    slots: list[int] = []
    queries, keys, values, expected = [], [], [], []
    prefix: list[Tensor] = []
    for row, ((count, context), blocks, share) in enumerate(zip(case.lens, counts, shares, strict=True)):
        tables[row, :share] = tables[0, :share]
        tables[row, share:blocks], numbers = numbers[: blocks - share], numbers[blocks - share :]
        key, value = (torch.randn(context, kv_heads, case.head_dim).to(dtype) for _ in range(2))
        if prefix:
            key[: share * size], value[: share * size] = (part[: share * size] for part in prefix)
        prefix = prefix or [key, value]
        for at in range(context):
            block, offset = tables[row, at // size], at % size
            own = at >= share * size
            if at >= context - count:
                slots.append(int(block) * size + offset if own else NULL_BLOCK * size)
            elif own:
                cache.keys[block, :, offset], cache.values[block, :, offset] = key[at], value[at]
        query = torch.randn(count, kv_heads * group, case.head_dim).to(dtype)
        queries.append(query)
        keys.append(key[context - count :])
        values.append(value[context - count :])
        expected.append(reference(query, key, value))
    metadata = metadata_of(case.lens, tables, slots, size)
    merged = torch.cat([torch.cat(parts) for parts in (queries, keys, values)], 1)
    parts = merged.split([kv_heads * group, kv_heads, kv_heads], 1)
    with using(implementation):
        found = cpu.attention(metadata, kv_heads, HOST)(*parts, cache)
    torch.testing.assert_close(found.double(), torch.cat(expected), rtol=0, atol=tolerance)


def by_kernels(implementation: str, case: Case, dtype: torch.dtype) -> bool:
    return (
        implementation != "torch" and dtype != torch.float16 and case.head_dim != 24 and case.heads[1] <= 64
    )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Steps of every mixture and shape; the later tokens of a chunk may be in others' blocks."""
    lens = draw(
        st.lists(st.tuples(st.integers(1, 40), st.integers(0, 90)), min_size=1, max_size=5)
        | st.lists(st.tuples(st.just(1), st.integers(0, 200)), min_size=1, max_size=8)
    )
    packed = [(count, count + past) for count, past in sorted(lens, key=lambda pair: pair[0] > 1)]
    return Case(
        lens=packed,
        shared=draw(st.integers(0, 4)),
        block_size=draw(st.sampled_from([1, 2, 3, 8, 16, 32, 64, 300])),
        spread=draw(st.sampled_from([1, 1, 3])),
        heads=(draw(st.integers(1, 3)), draw(st.integers(1, 8))),
        head_dim=draw(st.sampled_from([16, 32, 64, 80, 96, 128, 24])),
    )


#: Absolute, for values of a normal distribution.
attention_dtypes = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.bfloat16, 4e-2), (torch.float16, 5e-3)]
)


@each_implementation
@attention_dtypes
@settings(max_examples=40)
@given(case=cases(), seed=st.integers(0, 999))
def test_attention(implementation: str, dtype: torch.dtype, tolerance: float, case: Case, seed: int) -> None:
    check_attention(implementation, case, dtype, tolerance, seed)


@each_implementation
@attention_dtypes
@pytest.mark.parametrize(
    "case",
    [
        Case(lens=[(1, 512), (1, 513), (1, 1500), (1, 3), (100, 700), (300, 300)], block_size=32),
        Case(lens=[(1, 513), (1, 90), (70, 110)], block_size=2048),
        Case(lens=[(1, 1500)], heads=(1, 1), head_dim=128),
        Case(lens=[(1, 70), (1, 65), (2, 66), (64, 64)], shared=4, block_size=16),
        Case(lens=[(66, 66), (40, 104)], heads=(1, 64)),
        Case(lens=[(66, 66), (40, 104)], heads=(1, 65)),
    ],
    ids=["long ones in spans", "contiguous", "one alone", "whole prompts shared", "a group per lane", "more"],
)
def test_attention_where_the_work_is_cut(
    implementation: str, dtype: torch.dtype, tolerance: float, case: Case
) -> None:
    check_attention(implementation, case, dtype, tolerance, seed=0)


@each_implementation
def test_weights_far_apart_neither_overflow_nor_vanish(implementation: str) -> None:
    """Scores of thousands: the largest takes all."""
    key = torch.zeros(40, 1, 16)
    key[:, 0, 0] = torch.linspace(-4000, 4000, 40)
    value = torch.arange(40.0)[:, None, None].expand(40, 1, 16).contiguous()
    cache = cpu.allocate_cache(CacheShape(4, 16, 1, 16), torch.float32, HOST)
    metadata = AttentionMetadata(
        num_decodes=0,
        query_starts=np.array([0, 40], np.int32),
        context_lens=np.array([40], np.int32),
        block_tables=np.array([[1, 2, 3]], np.int32),
        slot_mapping=np.arange(16, 56),
        block_size=16,
    )
    with using(implementation):
        found = cpu.attention(metadata, 1, HOST)(torch.full((40, 1, 16), 9.0), key, value, cache)
    torch.testing.assert_close(found, value.flatten(1), rtol=1e-6, atol=1e-30)
