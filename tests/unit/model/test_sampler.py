"""Sampling against transformers' processors and plain formulas; seeds; log-probabilities."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    LogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from model.draws import Draws, SampledRow, TokenCounts, draws, uniforms
from model.request import SamplingParams
from model.sampler import draw, logprobs

ROWS = 20_000
STOP = 3
#: More than are sorted at first, so that flat rows need more; and a few.
VOCABULARIES = (20, 2500)


def sampled(logits: Tensor, params: SamplingParams, *, seed: int | None = None) -> Tensor:
    """Tokens of rows that differ in their seeds alone, or not even in these."""
    rows = range(len(logits)) if seed is None else [seed] * len(logits)
    return sample(logits, draws([SampledRow(params=params, seed=one) for one in rows]))


def sample(logits: Tensor, how: Draws) -> Tensor:
    """The tokens, guesses drawn again."""
    drawn = draw(logits, how)
    tokens, marked = drawn.tokens.clone(), drawn.marked.numpy()
    guessed = np.flatnonzero(marked < 0)
    assert (tokens.numpy() == np.where(marked < 0, -1 - marked, marked)).all()
    if len(guessed):
        tokens[guessed] = drawn.again(guessed)
    return tokens


def normal(rows: int, vocabulary: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.4, 0.1, 0.2, 0.3]),
        ({"temperature": 0.5}, [16 / 30, 1 / 30, 4 / 30, 9 / 30]),
        ({"temperature": 1e30}, [0.25, 0.25, 0.25, 0.25]),
        ({"temperature": 1e-4}, [1, 0, 0, 0]),
        ({"top_k": 1}, [1, 0, 0, 0]),
        ({"top_k": 2}, [4 / 7, 0, 0, 3 / 7]),
        ({"top_k": 9}, [0.4, 0.1, 0.2, 0.3]),
        ({"top_p": 0.65}, [4 / 7, 0, 0, 3 / 7]),
        ({"top_p": 0.75}, [4 / 9, 0, 2 / 9, 3 / 9]),
        ({"top_p": 1e-6}, [1, 0, 0, 0]),
        # top_p counts within what top_k leaves: 0.4 / 0.9 of it is the likeliest alone.
        ({"top_k": 3, "top_p": 0.44}, [1, 0, 0, 0]),
        ({"top_k": 3, "top_p": 0.46}, [4 / 7, 0, 0, 3 / 7]),
        ({"min_p": 0.24}, [0.4, 0.1, 0.2, 0.3]),
        ({"min_p": 0.26}, [4 / 9, 0, 2 / 9, 3 / 9]),
        ({"min_p": 1}, [1, 0, 0, 0]),
        # min_p comes after temperature, at which the second is 9/16 as likely as the first.
        ({"min_p": 0.6, "temperature": 0.5}, [1, 0, 0, 0]),
        # top_p counts within what min_p leaves: 0.4 / 0.7 of it is the likeliest alone.
        ({"min_p": 0.6, "top_p": 0.56}, [1, 0, 0, 0]),
        ({"min_p": 0.6, "top_p": 0.58}, [4 / 7, 0, 0, 3 / 7]),
    ],
)
def test_tokens_come_as_often_as_they_should(options: dict[str, float], expected: list[float]) -> None:
    logits = torch.tensor([0.4, 0.1, 0.2, 0.3]).log().expand(ROWS, -1)
    found = torch.bincount(sampled(logits, SamplingParams(**options)), minlength=4).double()  # type: ignore[arg-type]
    wanted = torch.tensor(expected, dtype=torch.float64) * ROWS
    assert (found[wanted == 0] == 0).all()
    possible = wanted > 0
    chi_square = ((found - wanted)[possible] ** 2 / wanted[possible]).sum().item()
    assert chi_square < 16.3  # exceeded once in a thousand at three degrees of freedom; the seeds are fixed


@pytest.mark.parametrize("options", [{"top_p": 0.9}, {"top_p": 0.9, "min_p": 1e-9}, {"top_k": 4000}])
def test_a_flat_vocabulary_needs_more_than_the_likeliest(options: dict[str, float]) -> None:
    logits = (normal(1, 5000) / 300).expand(1000, -1)
    tokens = sampled(logits, SamplingParams(**options))  # type: ignore[arg-type]
    order = logits[0].softmax(-1).sort(descending=True)
    size = options.get("top_k") or int((order.values.cumsum(0) < 0.9).sum()) + 1
    assert torch.isin(tokens, order.indices[: int(size)]).all()
    assert len(tokens.unique()) > 700


def test_top_p_counts_within_min_p_even_where_that_ends_beyond_the_likeliest() -> None:
    """300 tokens of 2000 in all, of which min_p leaves 200 of 1600: 0.55 of these are the first 88 tokens."""
    weights = torch.tensor([10.0] * 100 + [6.0] * 100 + [4.0] * 100) - torch.arange(300) * 1e-5
    tokens = sampled(weights.log().expand(3000, -1), SamplingParams(min_p=0.5, top_p=0.55))
    assert tokens.unique().tolist() == list(range(88))


# --- Any parameters, against transformers ---------------------------------------------------------

shares = st.floats(0.05, 0.999)
parameters = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.3, 1.0, 5.0]),
        "top_k": st.sampled_from([0, 1, 5, 200]),
        "top_p": st.just(1.0) | shares,
        "min_p": st.just(0.0) | st.floats(1e-6, 0.5),
        "repetition_penalty": st.just(1.0) | st.floats(0.5, 2),
        "presence_penalty": st.just(0.0) | st.floats(-2, 2),
        "frequency_penalty": st.just(0.0) | st.floats(-2, 2),
        "min_tokens": st.sampled_from([0, 3]),
    }
).map(lambda options: SamplingParams(**options))
tokens_of_both = st.lists(st.integers(0, min(VOCABULARIES) - 1), max_size=6)


@st.composite
def rows(draw: st.DrawFn) -> tuple[SampledRow, list[int], list[int]]:
    """A row to sample, its prompt and its answer so far."""
    params, prompt, answer = draw(parameters), draw(tokens_of_both), draw(tokens_of_both)
    counts = TokenCounts.wanted(params, prompt)
    for token in answer if counts else ():
        counts.add(token)
    row = SampledRow(
        params=params,
        seed=draw(st.integers(0, 2**64 - 1)),
        position=len(answer),
        counts=counts,
        stop_token_ids=frozenset({STOP}),
    )
    return row, prompt, answer


def processed(logits: Tensor, params: SamplingParams, prompt: list[int], answer: list[int]) -> Tensor:
    """Scores [1, vocabulary] before temperature: transformers', and OpenAI's two penalties in a loop."""
    ids = torch.tensor([[*prompt, *answer]], dtype=torch.int64)
    steps: list[LogitsProcessor] = [
        MinNewTokensLengthLogitsProcessor(len(prompt), params.min_tokens, STOP),
        RepetitionPenaltyLogitsProcessor(params.repetition_penalty),
    ]
    scores = logits[None].double()
    for step in steps:
        scores = step(ids, scores)
    for token, count in Counter(answer).items():
        scores[0, token] -= params.presence_penalty + params.frequency_penalty * count
    return scores


def warped(scores: Tensor, params: SamplingParams) -> Tensor:
    """Scores after temperature, and -inf where min_p, top_k and top_p cut."""
    steps: list[LogitsProcessor] = [TemperatureLogitsWarper(params.temperature)]
    if params.min_p:
        steps.append(MinPLogitsWarper(params.min_p))
    if params.top_k:
        steps.append(TopKLogitsWarper(params.top_k))
    steps.append(TopPLogitsWarper(params.top_p))
    for step in steps:
        scores = step(torch.zeros(1, 0, dtype=torch.int64), scores)
    return scores


@given(
    row=rows(), vocabulary=st.sampled_from(VOCABULARIES), seed=st.integers(0, 2**31), scale=st.floats(0.1, 2)
)
def test_a_token_is_drawn_from_transformers_distribution(
    row: tuple[SampledRow, list[int], list[int]], vocabulary: int, seed: int, scale: float
) -> None:
    """By inversion at the row's number; tokens are in the vocabulary's order, or the likeliest first."""
    one, prompt, answer = row
    params = one.params
    logits = normal(1, vocabulary, seed) * scale
    token = int(sample(logits, draws([one])))
    scores = processed(logits[0], params, prompt, answer)
    if params.greedy:
        assert scores[0, token] >= scores.max() - 1e-5
        return
    chance = float(uniforms(np.array([one.seed], np.uint64), np.array([one.position], np.uint64))[0])
    # A cut that falls within rounding of a token may be on either side of it.
    strict, lax = (
        warped(scores.clone(), with_shares(params, error)).softmax(-1)[0] for error in (-1e-5, 1e-5)
    )
    assume(torch.equal(strict > 0, lax > 0))
    whole = params.top_k == 0 and params.top_p == 1 and params.min_p == 0
    order = torch.arange(vocabulary) if whole else lax.argsort(descending=True)
    place = int((order == token).nonzero())
    end = float(lax[order[: place + 1]].sum())
    assert lax[token] > 0
    assert end - float(lax[token]) - 1e-4 <= chance <= end + 1e-4


def with_shares(params: SamplingParams, error: float) -> SamplingParams:
    """With top_p and min_p moved, so that less or more is cut."""
    return SamplingParams(
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=min(1.0, params.top_p + error) if params.top_p < 1 else 1.0,
        min_p=max(0.0, params.min_p * (1 - error)),
    )


@given(batch=st.lists(rows(), min_size=1, max_size=6), seed=st.integers(0, 2**31), data=st.data())
def test_a_row_draws_the_same_alone_and_in_any_batch(
    batch: list[tuple[SampledRow, list[int], list[int]]], seed: int, data: st.DataObject
) -> None:
    """On logits of bfloat16, in which many tokens are equally likely; and the logits stay as they are."""
    vocabulary = data.draw(st.sampled_from(VOCABULARIES))
    scale = torch.tensor(data.draw(st.lists(st.sampled_from([0.01, 1, 3]), min_size=6, max_size=6)))
    logits = (normal(len(batch), vocabulary, seed) * scale[: len(batch), None]).bfloat16().float()
    before = logits.clone()
    rows = [row for row, _, _ in batch]
    together = sample(logits, draws(rows)).tolist()
    alone = [int(sample(logits[[number]], draws([row]))) for number, row in enumerate(rows)]
    assert together == alone
    order = data.draw(st.permutations(range(len(rows))))
    assert sample(logits[order], draws([rows[number] for number in order])).tolist() == [
        together[number] for number in order
    ]
    assert torch.equal(logits, before)


# --- Penalties and bans ---------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0, 0.01])
def test_penalties_keep_an_answer_from_repeating_itself(temperature: float) -> None:
    logits = torch.tensor([[5.0, 4.8, 4.6, 4.4, 0.0]])
    for options, expected in (
        ({}, [0, 0, 0, 0, 0]),
        ({"presence_penalty": 0.5}, [0, 1, 2, 0, 0]),
        ({"frequency_penalty": 0.15}, [0, 0, 1, 0, 1]),
        ({"repetition_penalty": 1.1}, [0, 1, 2, 0, 0]),
        ({"presence_penalty": -1}, [0, 0, 0, 0, 0]),
    ):
        params = SamplingParams(temperature=temperature, **options)  # type: ignore[arg-type]
        counts = TokenCounts.wanted(params, (3,))
        answer: list[int] = []
        for position in range(5):
            row = SampledRow(params=params, seed=1, position=position, counts=counts)
            answer.append(int(sample(logits, draws([row]))))
            if counts:
                counts.add(answer[-1])
        assert answer == expected, options


def test_a_repetition_penalty_counts_the_prompt() -> None:
    params = SamplingParams(temperature=0, repetition_penalty=1.1)
    row = SampledRow(params=params, seed=0, counts=TokenCounts.wanted(params, (0, 2)))
    assert sample(torch.tensor([[5.0, 4.8, 4.9]]), draws([row])).tolist() == [1]
    assert sample(torch.tensor([[-1.0, -1.05, -1.0]]), draws([row])).tolist() == [1]


@pytest.mark.parametrize("options", [{"temperature": 0}, {}, {"top_k": 2}, {"top_p": 0.5}, {"min_p": 0.1}])
def test_stop_tokens_are_not_drawn_before_min_tokens(options: dict[str, float]) -> None:
    logits = torch.tensor([9.0, 8.0, 7.0, 0.0]).expand(500, -1)
    params = SamplingParams(min_tokens=4, **options)  # type: ignore[arg-type]

    def at(position: int) -> set[int]:
        rows = [
            SampledRow(params=params, seed=seed, position=position, stop_token_ids=frozenset({0, 1, 999}))
            for seed in range(500)
        ]
        return set(sample(logits, draws(rows)).tolist())

    assert not at(3) & {0, 1}
    assert at(4) & {0, 1}


def test_greedy_rows_take_the_likeliest_beside_any_others() -> None:
    logits = normal(64, 1000)
    kinds = [SamplingParams(temperature=0), SamplingParams(), SamplingParams(top_p=0.9)]
    tokens = sample(logits, draws([SampledRow(params=kinds[row % 3], seed=row) for row in range(64)]))
    assert torch.equal(tokens[::3], logits.argmax(-1)[::3])
    assert not torch.equal(tokens[1::3], logits.argmax(-1)[1::3])


def test_a_seed_draws_anew_at_each_position() -> None:
    logits = torch.zeros(200, 50)
    rows = [SampledRow(params=SamplingParams(), seed=9, position=position) for position in range(200)]
    assert len(sample(logits, draws(rows)).unique()) > 40
    assert len(sampled(logits, SamplingParams(), seed=9).unique()) == 1


# --- Log-probabilities ----------------------------------------------------------------------------


def test_logprobs_are_those_of_the_untempered_distribution() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.0, 0.0, 3.0, 0.0]])
    first, second = logprobs(logits, [1, 2], [2, 0])
    total = math.log(sum(math.exp(value) for value in (2, 1, 0, -1)))
    assert first.token_id == 1
    assert first.logprob == pytest.approx(1 - total, abs=1e-6)
    assert [token for token, _ in first.top] == [0, 1]
    assert [value for _, value in first.top] == pytest.approx([2 - total, 1 - total], abs=1e-6)
    assert (second.top, second.asked) == ((), ())


def test_logprobs_of_tokens_that_are_asked_for_and_of_many_rows() -> None:
    logits = normal(300, 60)
    tokens = [row % 60 for row in range(300)]
    counts = [row % 4 for row in range(300)]
    asked = [tuple(range(row % 3)) + (59,) * (row % 2) for row in range(300)]
    before = logits.clone()
    records = logprobs(logits, tokens, counts, asked)
    values = logits.double().numpy()
    expected = values - np.log(np.exp(values).sum(-1, keepdims=True))
    assert len(records) == 300
    for row, record in enumerate(records):
        assert record.token_id == tokens[row]
        assert record.logprob == pytest.approx(expected[row, tokens[row]], abs=1e-5)
        assert [token for token, _ in record.top] == np.argsort(-values[row])[: counts[row]].tolist()
        for token, value in (*record.top, *record.asked):
            assert value == pytest.approx(expected[row, token], abs=1e-5)
        assert tuple(token for token, _ in record.asked) == asked[row]
    assert torch.equal(logits, before)
    assert logprobs(logits[:0], [], []) == []
