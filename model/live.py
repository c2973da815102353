"""One unfinished answer inside the engine: its sequence, its text so far and what is known of its tokens.

It knows how an answer begins, how it is sampled and what comes out; when it runs is the scheduler's.
"""

from dataclasses import dataclass, field

from model.answer import Answer
from model.draws import SampledRow, TokenCounts
from model.request import Completion, FinishReason, Request, TokenLogprob
from model.scheduler import Sequence


@dataclass(slots=True, kw_only=True)
class Live:
    """Answer `index` of the `n` to a request."""

    request: Request
    index: int
    sequence: Sequence
    answer: Answer
    seed: int
    #: Tokens so far, where a penalty goes by them.
    counts: TokenCounts | None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    #: Of the prompt's tokens; all answers to a request have one list, which the first fills.
    prompt_logprobs: list[TokenLogprob]

    @property
    def row(self) -> SampledRow:
        """How its next token is sampled."""
        return SampledRow(
            params=self.request.params,
            seed=self.seed,
            position=self.sequence.num_generated,
            counts=self.counts,
            stop_token_ids=self.answer.stop_token_ids,
        )

    @property
    def token_ids(self) -> list[int]:
        """Its tokens so far."""
        sequence = self.sequence
        return sequence.tokens[sequence.prompt_len : sequence.num_known]

    @property
    def plans_ahead(self) -> bool:
        """Whether the token after the next can be sampled before the next is known to the host."""
        return self.counts is None and self.request.params.logprobs is None

    def accept(self, token: int, record: TokenLogprob | None) -> FinishReason | None:
        """Take the next of the tokens that the sequence awaits, and tell whether it is the last."""
        self.sequence.learn(token)
        if self.counts is not None:
            self.counts.add(token)
        if record is not None:
            self.logprobs.append(record)
        return self.answer.accept(token, self.sequence.num_known - self.sequence.prompt_len)

    def completion(self, reason: FinishReason) -> Completion:
        """What there is."""
        sequence, params = self.sequence, self.request.params
        token_ids = self.token_ids
        return Completion(
            request_id=self.request.id,
            index=self.index,
            token_ids=tuple(token_ids),
            text=self.answer.text(token_ids),
            finish_reason=reason,
            logprobs=None if params.logprobs is None else tuple(self.logprobs),
            prompt_logprobs=None if params.prompt_logprobs is None else tuple(self.prompt_logprobs),
            prompt_tokens=sequence.prompt_len,
            cached_tokens=sequence.num_cached or 0,
        )
