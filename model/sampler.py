"""Logits → tokens and log-probabilities, vectorised over the batch and on the logits' own device.

A token is drawn by inverting the cumulative distribution at one uniform number, which depends only on the
answer's seed and the position; each row is computed by itself. So a seeded answer is the same alone and in
any batch. The order is vLLM's (vllm/v1/sample/sampler.py): bans, penalties, temperature, min_p, top_k, top_p.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.draws import Draws, Edits, uniforms
from model.request import TokenLogprob
from model.transfer import upload

#: How many of the likeliest tokens are sorted at first, and then for rows that these do not settle; the last
#: resort is the whole vocabulary.
_WIDTHS = (128, 2048)
#: Rows whose log-probabilities are computed at a time: bounds the memory that a long prompt's take.
_LOGPROB_ROWS = 128
#: Tokens that are compared together when the likeliest is looked for.
_PART = 128


@dataclass(frozen=True, slots=True)
class _Truncated:
    """Rows that top_k, top_p or min_p cut, drawn from their likeliest tokens."""

    #: Numbers of the rows, on the host, [truncated].
    rows: NDArray[np.int64]
    #: Probabilities before they are cut, [truncated, vocabulary].
    weights: Tensor
    #: As `_draw_likeliest` has them, [truncated, 4].
    limits: Tensor
    #: Whether the likeliest tokens were enough, bool [truncated].
    settled: Tensor


@dataclass(frozen=True, slots=True)
class Drawn:
    """A token for each row, on the logits' device, where it may still be to be computed.

    Whether a truncated row could be drawn from its likeliest tokens alone only the device knows. Until it is
    asked, which would mean to wait for it, the row's token is a guess that is nearly always right.
    """

    #: int64 [rows], guesses included.
    tokens: Tensor
    _truncated: _Truncated | None = None

    @property
    def marked(self) -> Tensor:
        """The tokens, int64 [rows], with -1 - token for guesses that are to be drawn again."""
        if self._truncated is None:
            return self.tokens
        rows = _on(self.tokens, self._truncated.rows)
        guesses = self.tokens[rows]
        return self.tokens.index_copy(0, rows, torch.where(self._truncated.settled, guesses, -1 - guesses))

    def again(self, rows: NDArray[np.int64]) -> Tensor:
        """The tokens of these rows, which were guesses, by as many of the likeliest as they need."""
        assert self._truncated is not None  # noqa: S101 - others are not marked
        places = _on(self.tokens, np.searchsorted(self._truncated.rows, rows))
        weights, limits = self._truncated.weights[places], self._truncated.limits[places]
        tokens = self.tokens.new_empty(len(rows))
        left = torch.arange(len(rows), device=tokens.device)
        for width in _widths(weights)[1:]:
            tokens[left], settled = _draw_likeliest(weights[left], limits[left], width)
            left = left[~settled]
            if not len(left):
                break
        return tokens


def draw(logits: Tensor, draws: Draws) -> Drawn:
    """Draw from float32 logits [rows, vocabulary] without waiting for their device.

    The logits stay as they are: log-probabilities are of the model's own distribution.
    """
    greedy = draws.temperature == 0
    edits = draws.edits
    if greedy.all() and not len(edits.row) and not len(edits.banned_row):
        return Drawn(_argmax(logits))
    cut = ~greedy & ((draws.top_k > 0) | (draws.top_p < 1) | (draws.min_p > 0))
    tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    for chosen, choose in ((greedy, _likeliest), (~greedy & ~cut, _draw)):
        if chosen.any():
            rows = _on(logits, np.flatnonzero(chosen))
            part = draws.of(chosen)
            tokens[rows] = choose(_edit(logits[rows], part.edits), part)
    if not cut.any():
        return Drawn(tokens)
    numbers = np.flatnonzero(cut)
    rows, part = _on(logits, numbers), draws.of(cut)
    weights, limits = _weights(_edit(logits[rows], part.edits), part)
    tokens[rows], settled = _draw_likeliest(weights, limits, _widths(weights)[0])
    return Drawn(tokens, _Truncated(numbers, weights, limits, settled))


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
    return _argmax(logits)


def _argmax(logits: Tensor) -> Tensor:
    """The first of the largest of each row, [rows], by way of the largest of each part of it.

    On CPUs torch's argmax takes ten times as long as amax.
    """
    if logits.shape[-1] % _PART:
        return logits.argmax(-1)
    parts = logits.view(len(logits), -1, _PART)
    best = parts.amax(-1).argmax(-1, keepdim=True)
    inside = parts.gather(1, best[..., None].expand(-1, -1, _PART)).argmax(-1)
    tokens: Tensor = best * _PART + inside
    return tokens[:, 0]


def _draw(logits: Tensor, draws: Draws) -> Tensor:
    """From the whole vocabulary. The logits are used up."""
    numbers = _on(logits, np.stack((draws.temperature, uniforms(draws.seed, draws.position)), axis=1))
    return _invert(logits.div_(numbers[:, :1]).softmax(-1), numbers[:, 1:])[:, 0]


def _weights(logits: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """Probabilities, [rows, vocabulary], and what limits the draw from them. The logits are used up."""
    vocabulary = logits.shape[-1]
    top_k = np.where(draws.top_k > 0, draws.top_k, vocabulary).clip(max=vocabulary)
    chances = uniforms(draws.seed, draws.position)
    numbers = np.stack((draws.temperature, chances, top_k, draws.top_p, draws.min_p), axis=1)
    limits = _on(logits, numbers.astype(np.float32))
    return logits.div_(limits[:, :1]).softmax(-1), limits[:, 1:]


def _widths(weights: Tensor) -> list[int]:
    """How many of the likeliest tokens to look at, one after another."""
    vocabulary = weights.shape[-1]
    return [*(width for width in _WIDTHS if width < vocabulary), vocabulary]


def _draw_likeliest(weights: Tensor, limits: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """A token of each row from so many of its likeliest, [rows], and whether they hold all it may draw.

    Probabilities [rows, vocabulary]; limits [rows, 4]: the number that draws, top_k, top_p and min_p. These
    come in vLLM's order: top_p is a share of the mass that min_p and top_k leave.
    """
    vocabulary = weights.shape[-1]
    chances, top_k, top_p, min_p = limits.chunk(4, dim=-1)
    values, ids = weights.topk(width)
    # min_p and top_k leave a beginning of the sorted tokens, which may end beyond the width.
    least = min_p * values[:, :1]
    ends = (top_k <= width) | (values[:, -1:] < least) | (width == vocabulary)
    values *= (values >= least) & (torch.arange(width, device=weights.device) < top_k)
    cumulative = values.cumsum(-1)
    wanted = top_p * torch.where(ends, cumulative[:, -1:], 1.0)
    settled = ends | ((top_k == vocabulary) & (min_p == 0) & (cumulative[:, -1:] >= wanted))
    values *= cumulative - values < wanted
    return ids.gather(1, _invert(values, chances))[:, 0], settled[:, 0]


def _invert(weights: Tensor, chances: Tensor) -> Tensor:
    """The first index at which the cumulative weights exceed `chance` of their total, [rows, 1]."""
    cumulative = weights.cumsum(-1)
    total = cumulative[:, -1:].contiguous()
    index = torch.searchsorted(cumulative, total * chances, right=True)
    return torch.minimum(index, torch.searchsorted(cumulative, total))


def _on(tensor: Tensor, values: NDArray[np.float32] | NDArray[np.int64]) -> Tensor:
    return upload(values, tensor.device)
