"""Logits → tokens, vectorised over the batch: greedy, temperature, top_k, top_p, and log-probabilities.

A token is drawn by inverting the cumulative distribution at one uniform number, which depends only on the
request's seed and the position. So a seeded request draws the same alone and in any batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.request import TokenLogprob

#: Tokens that are sorted at first for top_p; rows whose mass they do not cover sort the whole vocabulary.
_LIKELIEST = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """How each row of logits is sampled, [rows] each."""

    temperature: NDArray[np.float32]
    top_k: NDArray[np.int64]
    top_p: NDArray[np.float32]
    seed: NDArray[np.uint64]
    #: Tokens that the request has generated so far.
    position: NDArray[np.uint64]


def sample(logits: Tensor, draws: Draws) -> Tensor:
    """Float32 logits [rows, vocabulary] → token ids [rows]."""
    tokens = logits.argmax(-1)
    drawn = draws.temperature > 0
    truncated = (draws.top_k > 0) | (draws.top_p < 1)
    for chosen, draw in ((drawn & ~truncated, _draw), (drawn & truncated, _draw_truncated)):
        if chosen.any():
            rows = torch.from_numpy(np.flatnonzero(chosen)).to(logits.device)

            def per_row(values: NDArray[np.float32 | np.int64], chosen: NDArray[np.bool_] = chosen) -> Tensor:
                return torch.from_numpy(values[chosen]).to(logits.device)[:, None]

            scaled = logits[rows] / per_row(draws.temperature)
            chances = per_row(uniforms(draws.seed, draws.position))
            tokens[rows] = draw(scaled, chances, per_row(draws.top_k), per_row(draws.top_p))
    return tokens


def logprobs(logits: Tensor, tokens: Sequence[int], counts: Sequence[int]) -> list[TokenLogprob]:
    """The log-probabilities of each row's token and of its `count` likeliest."""
    values = logits.log_softmax(-1)
    chosen = values.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0]
    top = values.topk(max(counts))
    return [
        TokenLogprob(token_id=token, logprob=logprob, top=tuple(zip(ids[:count], best[:count], strict=True)))
        for token, count, logprob, ids, best in zip(
            tokens, counts, chosen.tolist(), top.indices.tolist(), top.values.tolist(), strict=True
        )
    ]


def uniforms(seed: NDArray[np.uint64], position: NDArray[np.uint64]) -> NDArray[np.float32]:
    """A number in [0, 1) for each seed and position: 24 bits of splitmix64 (Steele et al., OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        state = _mix(seed) + (position + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        return ((_mix(state) >> np.uint64(40)) * 2.0**-24).astype(np.float32)


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _draw(scaled: Tensor, chances: Tensor, *_limits: Tensor) -> Tensor:
    """From the whole vocabulary."""
    return _invert(scaled.softmax(-1), chances)[:, 0]


def _draw_truncated(scaled: Tensor, chances: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """From the top_k likeliest, and of those from the likeliest that make up top_p of their mass."""
    vocabulary = scaled.shape[-1]
    top_k = torch.where(top_k > 0, top_k, vocabulary).clamp_(max=vocabulary)
    log_sum = scaled.logsumexp(-1, keepdim=True)
    limited = top_k[top_k < vocabulary]
    width = min(vocabulary, max([_LIKELIEST, *limited.tolist()]))
    while True:
        values, ids = scaled.topk(width)
        weights = (values - log_sum).exp_()
        weights *= torch.arange(width, device=scaled.device) < top_k
        cumulative = weights.cumsum(-1)
        wanted = top_p * torch.where(top_k <= width, cumulative[:, -1:], 1.0)
        if width == vocabulary or (cumulative[:, -1:] >= wanted).all():
            break
        width = vocabulary
    weights *= cumulative - weights < wanted
    return ids.gather(1, _invert(weights, chances))[:, 0]


def _invert(weights: Tensor, chances: Tensor) -> Tensor:
    """The first index at which the cumulative weights exceed `chance` of their total, [rows, 1]."""
    cumulative = weights.cumsum(-1)
    total = cumulative[:, -1:].contiguous()
    index = torch.searchsorted(cumulative, total * chances, right=True)
    return torch.minimum(index, torch.searchsorted(cumulative, total))
