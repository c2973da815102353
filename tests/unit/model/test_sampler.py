"""Sampling: distributions, truncation, seeds, log-probabilities."""

import math

import numpy as np
import pytest
import torch

from model.draws import Draws, uniforms
from model.sampler import logprobs, sample

ROWS = 20_000


def draws(
    rows: int, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, seed: int | None = None
) -> Draws:
    return Draws(
        temperature=np.full(rows, temperature, np.float32),
        top_k=np.full(rows, top_k),
        top_p=np.full(rows, top_p, np.float32),
        min_p=np.zeros(rows, np.float32),
        seed=np.arange(rows, dtype=np.uint64) if seed is None else np.full(rows, seed, np.uint64),
        position=np.zeros(rows, np.uint64),
    )


def frequencies(probabilities: list[float], **options: float) -> list[float]:
    logits = torch.tensor(probabilities).log().expand(ROWS, -1).contiguous()
    tokens = sample(logits, draws(ROWS, **options))  # type: ignore[arg-type]
    return (torch.bincount(tokens, minlength=len(probabilities)) / ROWS).tolist()


#: Five standard deviations of a frequency at worst.
TOLERANCE = 5 * math.sqrt(0.25 / ROWS)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.4, 0.1, 0.2, 0.3]),
        ({"temperature": 0.5}, [16 / 30, 1 / 30, 4 / 30, 9 / 30]),
        ({"top_k": 1}, [1, 0, 0, 0]),
        ({"top_k": 2}, [4 / 7, 0, 0, 3 / 7]),
        ({"top_k": 9}, [0.4, 0.1, 0.2, 0.3]),
        ({"top_p": 0.65}, [4 / 7, 0, 0, 3 / 7]),
        ({"top_p": 0.75}, [4 / 9, 0, 2 / 9, 3 / 9]),
        ({"top_p": 1e-6}, [1, 0, 0, 0]),
        # top_p counts within what top_k leaves: 0.4 / 0.9 of it is the likeliest alone.
        ({"top_k": 3, "top_p": 0.44}, [1, 0, 0, 0]),
        ({"top_k": 3, "top_p": 0.46}, [4 / 7, 0, 0, 3 / 7]),
    ],
)
def test_tokens_come_as_often_as_they_should(options: dict[str, float], expected: list[float]) -> None:
    found = frequencies([0.4, 0.1, 0.2, 0.3], **options)
    assert found == pytest.approx(expected, abs=TOLERANCE)
    assert [value > 0 for value in found] == [value > 0 for value in expected]


def test_top_p_over_a_flat_vocabulary_needs_more_than_the_likeliest_thousand() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 5000, generator=generator).mul_(0.01).expand(4000, -1).contiguous()
    tokens = sample(logits, draws(4000, top_p=0.9))
    order = logits[0].softmax(-1).sort(descending=True)
    kept = order.indices[: int((order.values.cumsum(0) < 0.9).sum()) + 1]
    assert torch.isin(tokens, kept).all()
    assert len(tokens.unique()) > 2000


def test_greedy_rows_take_the_likeliest_beside_sampled_ones() -> None:
    logits = torch.randn(64, 1000, generator=torch.Generator().manual_seed(0))
    mixed = draws(64)
    mixed.temperature[::2] = 0
    assert torch.equal(sample(logits, mixed)[::2], logits.argmax(-1)[::2])


@pytest.mark.parametrize("options", [{}, {"top_k": 50}, {"top_p": 0.9}, {"top_k": 2000, "top_p": 0.8}])
def test_a_seed_draws_the_same_alone_and_in_any_batch(options: dict[str, float]) -> None:
    logits = torch.randn(8, 3000, generator=torch.Generator().manual_seed(1))
    alone = [
        int(sample(logits[row : row + 1], draws(1, seed=7, **options)))  # type: ignore[arg-type]
        for row in range(8)
    ]
    together = sample(logits, draws(8, seed=7, **options)).tolist()  # type: ignore[arg-type]
    flat = draws(8, seed=7, top_p=0.999, temperature=5.0)
    flat.temperature[:4], flat.top_p[:4], flat.top_k[:4] = 1, options.get("top_p", 1), options.get("top_k", 0)
    assert alone == together
    assert sample(logits, flat).tolist()[:4] == alone[:4]


def test_uniforms_are_even_and_do_not_repeat() -> None:
    values = uniforms(
        np.repeat(np.arange(100, dtype=np.uint64), 100), np.tile(np.arange(100, dtype=np.uint64), 100)
    )
    assert values.min() >= 0
    assert values.max() < 1
    assert len(np.unique(values)) > 9990
    counts, _ = np.histogram(values, bins=10, range=(0, 1))
    assert np.abs(counts - 1000).max() < 5 * math.sqrt(900)


def test_logprobs_are_those_of_the_untempered_distribution() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.0, 0.0, 3.0, 0.0]])
    first, second = logprobs(logits, [1, 2], [2, 0])
    total = math.log(sum(math.exp(value) for value in (2, 1, 0, -1)))
    assert first.token_id == 1
    assert first.logprob == pytest.approx(1 - total, abs=1e-6)
    assert [token for token, _ in first.top] == [0, 1]
    assert [value for _, value in first.top] == pytest.approx([2 - total, 1 - total], abs=1e-6)
    assert second.top == ()
