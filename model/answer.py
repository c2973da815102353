"""One request's answer as it grows: when it ends, and the text that its tokens make. Imports no torch."""

from collections.abc import Sequence

from model.detokenizer import Detokenizer
from model.request import FinishReason, SamplingParams
from model.tokenizer import Tokenizer


class Answer:
    """Decides after each token whether the answer is over.

    Before `min_tokens` the sampler gives no stop token, and stop strings that are complete do not count.
    """

    def __init__(
        self, params: SamplingParams, stop_token_ids: frozenset[int], tokenizer: Tokenizer | None
    ) -> None:
        self._params = params
        #: The ids that end this answer: its own, and the model's unless these are ignored.
        self.stop_token_ids = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            self.stop_token_ids |= stop_token_ids
        self._tokenizer = tokenizer
        self._stops = StopStrings(params.stop, tokenizer) if params.stop and tokenizer else None

    def accept(self, token_id: int, count: int) -> FinishReason | None:
        """Judge the answer by its newest token, the `count`-th."""
        ended = token_id in self.stop_token_ids
        over = count >= self._params.max_tokens
        if self._stops:
            self._stops.push([] if ended else [token_id], last=ended or over)
            if count > self._params.min_tokens and self._stops.found():
                return "stop"
        if ended:
            return "stop"
        return "length" if over else None

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of all tokens but a final stop token, cut before a stop string."""
        if self._tokenizer is None:
            return ""
        if self._stops and self._stops.cut is not None:
            return self._stops.text[: self._stops.cut]
        ended = bool(token_ids) and token_ids[-1] in self.stop_token_ids
        return self._tokenizer.decode(token_ids[:-1] if ended else token_ids)


class StopStrings:
    """Looks for stop strings in the growing text, across the borders of tokens.

    As in vLLM, one that is complete while nobody looks for it, before `min_tokens`, is text like any other;
    one that begins there and is completed later counts.
    """

    def __init__(self, stops: Sequence[str], tokenizer: Tokenizer) -> None:
        self._stops = stops
        self._detokenizer = Detokenizer(tokenizer)
        self.text = ""
        #: Length of the text before the newest tokens: a stop string that they complete ends beyond.
        self._passed = 0
        #: Where the first stop string begins, once there is one.
        self.cut: int | None = None

    def push(self, token_ids: Sequence[int], *, last: bool) -> None:
        """Take the newest tokens, the last ones if nothing follows."""
        self._passed = len(self.text)
        self.text += self._detokenizer.push(token_ids) + (self._detokenizer.finish() if last else "")

    def found(self) -> bool:
        """Whether the newest tokens completed a stop string."""
        starts = ((stop, max(0, self._passed - len(stop) + 1)) for stop in self._stops)
        cuts = [cut for stop, start in starts if (cut := self.text.find(stop, start)) >= 0]
        self.cut = min(cuts, default=None)
        return self.cut is not None
