"""What a step's sampling is told: counts of tokens, packed rows, seeds."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.draws import NO_EDITS, SampledRow, TokenCounts, draws, seed_of, uniforms
from model.request import SamplingParams

tokens = st.lists(st.integers(0, 40) | st.integers(0, 2**31 - 1), max_size=300)


@given(prompt=tokens, answer=tokens)
def test_counts_are_those_of_all_tokens_so_far(prompt: list[int], answer: list[int]) -> None:
    counts = TokenCounts.of(prompt)
    seen = Counter[int]()
    for end in range(len(answer) + 1):
        if end:
            counts.add(answer[end - 1])
            seen[answer[end - 1]] += 1
        if end % 64 == 0 or end == len(answer):
            expected = {token: seen[token] for token in {*prompt, *seen}}
            assert len(counts.tokens) == len(expected)
            assert dict(zip(counts.tokens.tolist(), counts.counts.tolist(), strict=True)) == expected


def test_tokens_are_counted_only_where_a_penalty_goes_by_them() -> None:
    prompt = (5, 5, 7)
    assert TokenCounts.wanted(SamplingParams(), prompt) is None
    assert TokenCounts.wanted(SamplingParams(min_p=0.1, min_tokens=1), prompt) is None
    for params in (SamplingParams(presence_penalty=0.1), SamplingParams(frequency_penalty=-0.1)):
        counts = TokenCounts.wanted(params, prompt)
        assert counts is not None
        assert len(counts.tokens) == 0
    counts = TokenCounts.wanted(SamplingParams(repetition_penalty=0.9), prompt)
    assert counts is not None
    assert (counts.tokens.tolist(), counts.counts.tolist()) == ([5, 7], [0, 0])


def test_edits_name_the_rows_that_need_them() -> None:
    counts = TokenCounts.of((3,))
    for token in (8, 8):
        counts.add(token)
    only_answer = TokenCounts.of(())
    only_answer.add(4)
    stops = frozenset({2})
    packed = draws(
        [
            SampledRow(params=SamplingParams(), seed=1, stop_token_ids=stops),
            SampledRow(
                params=SamplingParams(repetition_penalty=1.5, frequency_penalty=0.25, presence_penalty=1),
                seed=1,
                counts=counts,
            ),
            SampledRow(params=SamplingParams(min_tokens=3), seed=1, position=2, stop_token_ids=stops),
            SampledRow(params=SamplingParams(min_tokens=3), seed=1, position=3, stop_token_ids=stops),
            SampledRow(params=SamplingParams(presence_penalty=-2), seed=1, counts=only_answer),
        ]
    )
    edits = packed.edits
    assert edits.row.tolist() == [1, 1, 4]
    assert edits.token.tolist() == [3, 8, 4]
    assert edits.factor.tolist() == [1.5, 1.5, 1]
    assert edits.less.tolist() == [0, 1.5, -2]
    assert (edits.banned_row.tolist(), edits.banned_token.tolist()) == ([2], [2])
    some = packed.of(np.array([False, True, False, True, True]))
    assert (some.edits.row.tolist(), some.edits.token.tolist()) == ([0, 0, 2], [3, 8, 4])
    assert len(some.edits.banned_row) == 0
    assert some.position.tolist() == [0, 3, 0]


def test_rows_without_penalties_have_no_edits() -> None:
    rows = [SampledRow(params=SamplingParams(min_p=0.1), seed=0, stop_token_ids=frozenset({1}))] * 3
    assert draws(rows).edits is NO_EDITS
    assert draws([]).edits is NO_EDITS


@pytest.mark.filterwarnings("error")
def test_no_parameter_leaves_the_range_of_float32() -> None:
    counts = TokenCounts.of((1,))
    rows = [
        SampledRow(
            params=SamplingParams(temperature=temperature, repetition_penalty=penalty), seed=0, counts=counts
        )
        for temperature, penalty in ((1e300, 1e300), (1e-300, 1e-300), (1e-5, 1))
    ]
    packed = draws(rows)
    assert np.isfinite(packed.temperature).all()
    assert packed.temperature.tolist()[1:] == [0, np.float32(1e-5)]
    assert np.isfinite(packed.edits.factor).all()
    assert (packed.edits.factor > 0).all()


def test_answers_have_seeds_of_their_own_and_the_first_has_the_requests() -> None:
    assert seed_of(7, 0) == 7
    assert seed_of(-1, 0) == 2**64 - 1
    assert seed_of(2**70 + 5, 0) == 5
    seeds = {seed_of(seed, index) for seed in range(-50, 50) for index in range(128)}
    assert len(seeds) == 100 * 128
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert seed_of(3, 4) == seed_of(3, 4)


def test_answers_draw_independently_of_each_other() -> None:
    seeds = np.array([[seed_of(seed, index) for index in range(4)] for seed in range(2000)], np.uint64)
    values = np.stack([uniforms(seeds[:, index], np.zeros(2000, np.uint64)) for index in range(4)])
    off_diagonal = np.corrcoef(values)[~np.eye(4, dtype=bool)]
    assert np.abs(off_diagonal).max() < 5 / math.sqrt(2000)


def test_uniforms_are_even_and_do_not_repeat() -> None:
    values = uniforms(
        np.repeat(np.arange(100, dtype=np.uint64), 100), np.tile(np.arange(100, dtype=np.uint64), 100)
    )
    assert values.min() >= 0
    assert values.max() < 1
    assert len(np.unique(values)) > 9990
    counts, _ = np.histogram(values, bins=10, range=(0, 1))
    assert np.abs(counts - 1000).max() < 5 * math.sqrt(900)
