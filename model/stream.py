"""One answer as text that grows, for someone who reads along.

It steps an engine that has nothing else to do; many answers at once are `LLM.generate`'s or the worker's.
"""

from collections.abc import Iterator

from model.detokenizer import Detokenizer
from model.engine import Engine
from model.request import Completion, Request


class Stream:
    """Iterate for the pieces of the text; they join to the completion's text, stop strings never shown."""

    def __init__(self, engine: Engine, request: Request) -> None:
        """Queue the request, whose `n` is 1. Raises RequestError; needs an engine with a tokenizer."""
        engine.add(request)
        self._engine = engine
        self._request = request
        self._shown = 0
        #: The whole answer, once it has ended.
        self.completion: Completion | None = None

    def __iter__(self) -> Iterator[str]:
        """Step by step, the text that has become certain: a step of prefill or half a character gives ''."""
        assert self._engine.tokenizer is not None  # noqa: S101 - the caller's promise
        detokenizer = Detokenizer(self._engine.tokenizer)
        # What could be the beginning of a stop string is held back.
        held = max((len(stop) - 1 for stop in self._request.params.stop), default=0)
        num_seen = 0
        while self.completion is None:
            for completion in self._engine.step():
                self.completion = completion
                yield self._rest(completion)
                return
            token_ids = self._engine.progress(self._request.id)
            detokenizer.push(token_ids[num_seen:])
            num_seen = len(token_ids)
            text = detokenizer.text
            piece = text[self._shown : max(self._shown, len(text) - held)]
            self._shown += len(piece)
            yield piece

    def abort(self) -> str:
        """End the answer here, and return the text that was still held back."""
        if self.completion is None:
            self.completion = self._engine.abort(self._request.id)[0]
            return self._rest(self.completion)
        return ""

    def _rest(self, completion: Completion) -> str:
        rest = completion.text[self._shown :]
        self._shown = len(completion.text)
        return rest
