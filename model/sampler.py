"""Logits → tokens and log-probabilities, vectorised over the batch and on the logits' own device.

A token is drawn by inverting the cumulative distribution at one uniform number, which depends only on the
answer's seed and the position; each row is computed by itself. So a seeded answer is the same alone and in
any batch. The order is vLLM's (vllm/v1/sample/sampler.py): bans, penalties, temperature, min_p, top_k, top_p.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.draws import Draws, Edits, uniforms
from model.request import TokenLogprob

#: Tokens that are sorted at first; rows that these do not settle sort the whole vocabulary.
_LIKELIEST = 1024
#: Rows whose log-probabilities are computed at a time: bounds the memory that a long prompt's take.
_LOGPROB_ROWS = 128


def sample(logits: Tensor, draws: Draws) -> Tensor:
    """Float32 logits [rows, vocabulary] → token ids, int64 [rows].

    The logits stay as they are: log-probabilities are of the model's own distribution.
    """
    greedy = draws.temperature == 0
    edits = draws.edits
    if greedy.all() and not len(edits.row) and not len(edits.banned_row):
        return logits.argmax(-1)
    truncated = (draws.top_k > 0) | (draws.top_p < 1) | (draws.min_p > 0)
    tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    for chosen, choose in (
        (greedy, _likeliest),
        (~greedy & ~truncated, _draw),
        (~greedy & truncated, _draw_truncated),
    ):
        if chosen.any():
            rows = _on(logits, np.flatnonzero(chosen))
            part = draws.of(chosen)
            tokens[rows] = choose(_edit(logits[rows], part.edits), part)
    return tokens


def logprobs(
    logits: Tensor, tokens: Sequence[int], counts: Sequence[int], asked: Sequence[tuple[int, ...]] = ()
) -> list[TokenLogprob]:
    """The log-probabilities of each row's token, of its `count` likeliest and of those asked for, if any.

    Of the model's distribution, before bans, penalties and temperature: vLLM's `raw_logprobs`.
    """
    wanted = asked or [()] * len(tokens)
    return [
        record
        for start in range(0, len(tokens), _LOGPROB_ROWS)
        for part in [slice(start, start + _LOGPROB_ROWS)]
        for record in _logprobs(logits[part], tokens[part], counts[part], wanted[part])
    ]


def _logprobs(
    logits: Tensor, tokens: Sequence[int], counts: Sequence[int], asked: Sequence[tuple[int, ...]]
) -> Iterator[TokenLogprob]:
    values = logits.log_softmax(-1)
    sizes = [1 + len(ids) for ids in asked]
    rows = np.repeat(np.arange(len(sizes)), sizes)
    named = np.array([token for own, ids in zip(tokens, asked, strict=True) for token in (own, *ids)])
    found = iter(values[_on(logits, rows), _on(logits, named)].tolist())
    top = values.topk(max(counts))
    for token, count, ids, likeliest, best in zip(
        tokens, counts, asked, top.indices.tolist(), top.values.tolist(), strict=True
    ):
        yield TokenLogprob(
            token_id=token,
            logprob=next(found),
            top=tuple(zip(likeliest[:count], best[:count], strict=True)),
            asked=tuple((one, next(found)) for one in ids),
        )


def _edit(logits: Tensor, edits: Edits) -> Tensor:
    """Penalize and ban in place, and return the same tensor.

    Repetition: CTRL (arXiv 1909.05858), as transformers' RepetitionPenaltyLogitsProcessor has it. Presence
    and frequency: https://platform.openai.com/docs/advanced-usage, "Frequency and presence penalties".
    """
    if len(edits.row):
        places = _on(logits, edits.row), _on(logits, edits.token)
        factor = _on(logits, edits.factor)
        values = logits[places]
        values = torch.where(values > 0, values / factor, values * factor)
        logits[places] = values - _on(logits, edits.less)
    known = edits.banned_token < logits.shape[-1]
    if known.any():
        logits[_on(logits, edits.banned_row[known]), _on(logits, edits.banned_token[known])] = -math.inf
    return logits


def _likeliest(logits: Tensor, _draws: Draws) -> Tensor:
    return logits.argmax(-1)


def _draw(logits: Tensor, draws: Draws) -> Tensor:
    """From the whole vocabulary. The logits are used up."""
    weights, chances = _weights(logits, draws)
    return _invert(weights, chances)[:, 0]


def _draw_truncated(logits: Tensor, draws: Draws) -> Tensor:
    """From what min_p, top_k and top_p leave. The logits are used up."""
    vocabulary = logits.shape[-1]
    weights, chances = _weights(logits, draws)
    top_k = np.where(draws.top_k > 0, draws.top_k, vocabulary).clip(max=vocabulary)
    limits = (
        chances,
        _on(logits, top_k)[:, None],
        _on(logits, np.stack((draws.top_p, draws.min_p), axis=1)),
    )
    tokens, settled = _draw_likeliest(weights, *limits, width=min(_LIKELIEST, vocabulary))
    if vocabulary > _LIKELIEST and not settled.all():
        rest = ~settled
        tokens[rest], _ = _draw_likeliest(weights[rest], *(limit[rest] for limit in limits), width=vocabulary)
    return tokens


def _draw_likeliest(
    weights: Tensor, chances: Tensor, top_k: Tensor, shares: Tensor, *, width: int
) -> tuple[Tensor, Tensor]:
    """Draws by the `width` likeliest tokens, [rows], and whether these hold all that can be drawn, [rows].

    min_p and top_k come first; top_p is a share of the mass that they leave, as in vLLM.
    """
    vocabulary = weights.shape[-1]
    top_p, min_p = shares[:, :1], shares[:, 1:]
    values, ids = weights.topk(width)
    least = min_p * values[:, :1]
    # What is kept of the sorted tokens is a beginning, and it may end beyond the width.
    ends = (top_k <= width) | (values[:, -1:] < least) | (width == vocabulary)
    values *= (values >= least) & (torch.arange(width, device=weights.device) < top_k)
    cumulative = values.cumsum(-1)
    kept = cumulative[:, -1:]
    wanted = top_p * torch.where(ends, kept, 1.0)
    values *= cumulative - values < wanted
    settled = ends | ((top_k == vocabulary) & (min_p == 0) & (kept >= wanted))
    return ids.gather(1, _invert(values, chances))[:, 0], settled[:, 0]


def _weights(logits: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """Probabilities [rows, vocabulary], and the numbers that draw from them, [rows, 1]."""
    numbers = _on(logits, np.stack((draws.temperature, uniforms(draws.seed, draws.position)), axis=1))
    return logits.div_(numbers[:, :1]).softmax(-1), numbers[:, 1:]


def _invert(weights: Tensor, chances: Tensor) -> Tensor:
    """The first index at which the cumulative weights exceed `chance` of their total, [rows, 1]."""
    cumulative = weights.cumsum(-1)
    total = cumulative[:, -1:].contiguous()
    index = torch.searchsorted(cumulative, total * chances, right=True)
    return torch.minimum(index, torch.searchsorted(cumulative, total))


def _on(logits: Tensor, values: NDArray[np.float32] | NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(values).to(logits.device)
