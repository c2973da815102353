"""What sampling needs to know of each row of a step's logits, as flat arrays. Imports no torch.

It owns the seeds, the counts of tokens that penalties go by, and the packing of rows into `Draws`, which
costs O(rows) and, where penalties are asked for, O(their distinct tokens). `model.sampler` applies it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from model.request import SamplingParams

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Seeds = NDArray[np.uint64]

#: Beyond these, temperatures and repetition penalties leave float32's range and do nothing more.
_EXTREME = 1e6
_WORD = 2**64
#: splitmix64's increment: Steele et al., "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.
_GAMMA = 0x9E3779B97F4A7C15


class TokenCounts:
    """How often an answer has each token, and which tokens its prompt has: what penalties go by.

    Distinct tokens lie in the order of their first appearance, so that a further token costs O(1).
    """

    __slots__ = ("_counts", "_place", "_tokens")

    def __init__(self, tokens: Ints) -> None:
        """Of distinct tokens that were not generated, int64 [tokens]."""
        self._tokens = tokens
        self._counts = np.zeros(len(tokens), np.int64)
        self._place = {token: place for place, token in enumerate(tokens.tolist())}

    @classmethod
    def of(cls, prompt_ids: Sequence[int]) -> Self:
        """Of a prompt, before its answer."""
        return cls(np.unique(np.array(prompt_ids, np.int64)))

    @classmethod
    def wanted(cls, params: SamplingParams, prompt_ids: Sequence[int]) -> Self | None:
        """As `of`, None where no penalty is asked for; the prompt counts for the repetition penalty alone."""
        if params.repetition_penalty != 1:
            return cls.of(prompt_ids)
        return cls.of(()) if params.presence_penalty or params.frequency_penalty else None

    @property
    def tokens(self) -> Ints:
        """The distinct tokens of prompt and answer, [distinct]."""
        return self._tokens[: len(self._place)]

    @property
    def counts(self) -> Ints:
        """How often the answer has each of `tokens`, [distinct]; 0 for those of the prompt alone."""
        return self._counts[: len(self._place)]

    def add(self, token_id: int) -> None:
        """Count one generated token."""
        place = self._place.setdefault(token_id, len(self._place))
        if place == len(self._tokens):
            room = max(64, place)
            self._tokens = np.concatenate((self._tokens, np.zeros(room, np.int64)))
            self._counts = np.concatenate((self._counts, np.zeros(room, np.int64)))
        self._tokens[place] = token_id
        self._counts[place] += 1


@dataclass(slots=True, kw_only=True)
class SampledRow:
    """One row of logits to sample from; it can be kept for a whole answer and its `position` moved on."""

    params: SamplingParams
    #: From `seed_of`.
    seed: int
    #: Tokens generated so far.
    position: int = 0
    #: From `TokenCounts.wanted`, all generated tokens added.
    counts: TokenCounts | None = None
    #: The ids that end this answer.
    stop_token_ids: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Edits:
    """Changes to single logits, at (row, token): penalties, [entries] each, and bans, [bans] each.

    No (row, token) is twice among the penalties.
    """

    row: Ints
    token: Ints
    #: The repetition penalty.
    factor: Floats
    #: What the presence and frequency penalties take away.
    less: Floats
    banned_row: Ints
    banned_token: Ints

    def of(self, chosen: NDArray[np.bool_]) -> "Edits":
        """Those of the chosen rows, bool [rows], which are numbered anew."""
        if not len(self.row) and not len(self.banned_row):
            return self
        number = np.cumsum(chosen) - 1
        penalized, banned = chosen[self.row], chosen[self.banned_row]
        return Edits(
            row=number[self.row[penalized]],
            token=self.token[penalized],
            factor=self.factor[penalized],
            less=self.less[penalized],
            banned_row=number[self.banned_row[banned]],
            banned_token=self.banned_token[banned],
        )


NO_EDITS = Edits(
    row=np.zeros(0, np.int64),
    token=np.zeros(0, np.int64),
    factor=np.zeros(0, np.float32),
    less=np.zeros(0, np.float32),
    banned_row=np.zeros(0, np.int64),
    banned_token=np.zeros(0, np.int64),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """How each row of logits is sampled, [rows] each."""

    #: 0 is greedy.
    temperature: Floats
    #: 0 is off.
    top_k: Ints
    top_p: Floats
    min_p: Floats
    seed: Seeds
    #: Tokens that the answer has so far.
    position: Seeds
    edits: Edits = NO_EDITS

    def of(self, chosen: NDArray[np.bool_]) -> "Draws":
        """Those of the chosen rows, bool [rows]."""
        return Draws(
            temperature=self.temperature[chosen],
            top_k=self.top_k[chosen],
            top_p=self.top_p[chosen],
            min_p=self.min_p[chosen],
            seed=self.seed[chosen],
            position=self.position[chosen],
            edits=self.edits.of(chosen),
        )


def draws(rows: Sequence[SampledRow]) -> Draws:
    """Pack the rows of a step, in the order of its logits."""
    params = [row.params for row in rows]
    return Draws(
        temperature=_floats(0.0 if one.greedy else min(one.temperature, _EXTREME) for one in params),
        top_k=np.array([one.top_k for one in params], np.int64),
        top_p=_floats(one.top_p for one in params),
        min_p=_floats(one.min_p for one in params),
        seed=np.array([row.seed for row in rows], np.uint64),
        position=np.array([row.position for row in rows], np.uint64),
        edits=_edits(rows),
    )


def seed_of(seed: int, index: int) -> int:
    """The seed of a request's answer `index`, in [0, 2**64): the first draws as if it were the only one."""
    return _mix_one(seed + index * _GAMMA) if index else seed % _WORD


def uniforms(seed: Seeds, position: Seeds) -> Floats:
    """A number in [0, 1) for each seed and position: 24 bits of splitmix64."""
    with np.errstate(over="ignore"):
        state = _mix(seed) + (position + np.uint64(1)) * np.uint64(_GAMMA)
        return ((_mix(state) >> np.uint64(40)) * 2.0**-24).astype(np.float32)


def _edits(rows: Sequence[SampledRow]) -> Edits:
    penalized = [(number, row, row.counts) for number, row in enumerate(rows) if row.counts is not None]
    banned = [
        (number, token)
        for number, row in enumerate(rows)
        if row.position < row.params.min_tokens
        for token in row.stop_token_ids
    ]
    if not penalized and not banned:
        return NO_EDITS
    bans = np.array(banned, np.int64).reshape(-1, 2)
    sizes = [len(counts.tokens) for _, _, counts in penalized]

    def spread(values: Iterable[float]) -> NDArray[np.float64]:
        return np.repeat(np.array([*values], np.float64), sizes)

    counts = np.concatenate([NO_EDITS.row, *(counts.counts for _, _, counts in penalized)])
    presence = spread(row.params.presence_penalty for _, row, _ in penalized)
    frequency = spread(row.params.frequency_penalty for _, row, _ in penalized)
    factor = spread(row.params.repetition_penalty for _, row, _ in penalized)
    return Edits(
        row=np.repeat(np.array([number for number, _, _ in penalized], np.int64), sizes),
        token=np.concatenate([NO_EDITS.token, *(counts.tokens for _, _, counts in penalized)]),
        factor=factor.clip(1 / _EXTREME, _EXTREME).astype(np.float32),
        less=(presence * (counts > 0) + frequency * counts).astype(np.float32),
        banned_row=bans[:, 0],
        banned_token=bans[:, 1],
    )


def _floats(values: Iterable[float]) -> Floats:
    return np.array([*values], np.float32)


def _mix(state: Seeds) -> Seeds:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _mix_one(number: int) -> int:
    with np.errstate(over="ignore"):
        return int(_mix(np.array([number % _WORD], np.uint64))[0])
