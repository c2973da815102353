"""One request's answer as it grows: when it ends, and the text that its tokens make. Imports no torch."""

from collections.abc import Sequence

from model.detokenizer import Detokenizer
from model.request import FinishReason, SamplingParams
from model.tokenizer import Tokenizer


class Answer:
    """Decides after each token whether the answer is over."""

    def __init__(
        self, params: SamplingParams, stop_token_ids: frozenset[int], tokenizer: Tokenizer | None
    ) -> None:
        self._params = params
        self._stop_token_ids = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            self._stop_token_ids |= stop_token_ids
        self._tokenizer = tokenizer
        self._stops = StopStrings(params.stop, tokenizer) if params.stop and tokenizer else None

    def accept(self, token_id: int, count: int) -> FinishReason | None:
        """Judge the answer by its newest token, the `count`-th."""
        if token_id in self._stop_token_ids:
            return "stop"
        over = count >= self._params.max_tokens
        if self._stops and self._stops.found(token_id, last=over):
            return "stop"
        return "length" if over else None

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of all tokens but a final stop token, cut before a stop string."""
        if self._tokenizer is None:
            return ""
        if self._stops and self._stops.cut is not None:
            return self._stops.text[: self._stops.cut]
        ended = bool(token_ids) and token_ids[-1] in self._stop_token_ids
        return self._tokenizer.decode(token_ids[:-1] if ended else token_ids)


class StopStrings:
    """Looks for stop strings in the growing text, across the borders of tokens."""

    def __init__(self, stops: Sequence[str], tokenizer: Tokenizer) -> None:
        self._stops = stops
        self._longest = max(map(len, stops))
        self._detokenizer = Detokenizer(tokenizer)
        self.text = ""
        #: Where the first stop string begins, once there is one.
        self.cut: int | None = None

    def found(self, token_id: int, *, last: bool) -> bool:
        """Take one token, the last one if nothing follows, and tell whether a stop string is complete."""
        new = self._detokenizer.push([token_id]) + (self._detokenizer.finish() if last else "")
        start = max(0, len(self.text) - self._longest + 1)
        self.text += new
        cuts = [cut for stop in self._stops if (cut := self.text.find(stop, start)) >= 0]
        self.cut = min(cuts, default=None)
        return self.cut is not None
