"""A step that the device has been told: which answers get a token from it, and which tokens these are.

It owns what there is to know between the start of a step and its end. It changes no answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from model.draws import draws
from model.live import Live
from model.request import TokenLogprob
from model.sampler import Drawn, draw, logprobs
from model.transfer import Download


@dataclass(frozen=True, slots=True)
class NewToken:
    """What an answer gets from a step."""

    live: Live
    token: int
    record: TokenLogprob | None
    #: Whether the device was told another token, which the step after this one may have begun with.
    corrected: bool


@dataclass(slots=True)
class StartedStep:
    """One step, from when it is told until its tokens are known."""

    #: The answers that are sampled, in the order of their rows.
    sampled: Sequence[Live]
    #: Float32, [sampled, vocabulary].
    _logits: Tensor
    _drawn: Drawn
    _download: Download
    #: Rows that nobody is to get.
    _void: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, sampled: Sequence[Live], logits: Tensor) -> "StartedStep":
        """Have each answer's next token drawn from its row of logits."""
        drawn = draw(logits, draws([live.row for live in sampled]))
        return cls(sampled, logits, drawn, Download(drawn.marked))

    @property
    def tokens(self) -> Tensor:
        """On the device, int64 [sampled]: what the next step begins with."""
        return self._drawn.tokens

    @property
    def plans_ahead(self) -> bool:
        """Whether the next step can be planned before these tokens are known."""
        return all(live.plans_ahead for live in self.sampled)

    def void(self, live: Live) -> None:
        """The answer does not get what it is sampled here, if it is: it began with a wrong token."""
        self._void.update(row for row, each in enumerate(self.sampled) if each is live)

    def outcome(self, meanwhile: Callable[[], None]) -> list[NewToken]:
        """The tokens, once they are there; `meanwhile` is called until then, and may give up by raising."""
        marked = self._download.result(meanwhile).numpy()
        guessed = np.flatnonzero(marked < 0)
        tokens = marked.copy()
        if len(guessed):
            tokens[guessed] = self._drawn.again(guessed).cpu().numpy()
        corrected = (marked < 0) & (tokens != -1 - marked)
        records = self._records(tokens.tolist())
        return [
            NewToken(live, token, records.get(row), wrong)
            for row, (live, token, wrong) in enumerate(
                zip(self.sampled, tokens.tolist(), corrected.tolist(), strict=True)
            )
            if row not in self._void
        ]

    def _records(self, tokens: Sequence[int]) -> dict[int, TokenLogprob]:
        """The log-probabilities of the rows for which they are wanted."""
        wanted = {
            row: live.request.params
            for row, live in enumerate(self.sampled)
            if live.request.params.logprobs is not None
        }
        if not wanted:
            return {}
        rows = list(wanted)
        counts = [params.logprobs or 0 for params in wanted.values()]
        asked = [params.logprob_token_ids for params in wanted.values()]
        found = logprobs(self._logits[rows], [tokens[row] for row in rows], counts, asked)
        return dict(zip(rows, found, strict=True))
