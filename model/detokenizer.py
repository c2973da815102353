"""Token ids to text as they come, at a constant cost per token.

Owns when text is settled: never in the middle of a UTF-8 sequence or of a run of byte tokens, whose text
later bytes can still change. What it gives out joins to exactly what decoding all ids at once gives.
"""

from collections.abc import Sequence

from model.tokenizer import Tokenizer

#: Settled tokens decoded again before the next ones, so that the rules on leading spaces see their left side.
_CONTEXT = 8
_REPLACEMENT = "\ufffd"


class Detokenizer:
    """The text of one growing answer; control tokens have none.

    As in vLLM and TGI, new ids are decoded together with the last settled ones, and the text of those is cut
    off in front.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._settled: list[str] = []
        self._context: list[int] = []
        self._context_length = 0
        self._pending: list[int] = []
        self._next_try = 1

    @property
    def text(self) -> str:
        """All text given out so far."""
        self._settled = ["".join(self._settled)]
        return self._settled[0]

    def push(self, token_ids: Sequence[int]) -> str:
        """Take further ids and return the text that they settle, which may be none yet."""
        tokenizer = self._tokenizer
        self._pending += [
            i for i in token_ids if 0 <= i < tokenizer.vocab_size and not tokenizer.is_control(i)
        ]
        # Bytes that make no character are tried ever more rarely, so that noise costs no more than text.
        if len(self._pending) < self._next_try or tokenizer.is_byte(self._pending[-1]):
            return ""
        text = self._new_text()
        if not text or text.endswith(_REPLACEMENT):
            self._next_try = len(self._pending) + 1 + len(self._pending) // 4
            return ""
        return self._settle(text)

    def finish(self) -> str:
        """Return what is left, with a replacement character for an incomplete sequence."""
        return self._settle(self._new_text()) if self._pending else ""

    def _new_text(self) -> str:
        return self._tokenizer.decode(self._context + self._pending)[self._context_length :]

    def _settle(self, text: str) -> str:
        self._context = self._pending[-_CONTEXT:]
        self._context_length = len(self._tokenizer.decode(self._context))
        self._pending = []
        self._next_try = 1
        self._settled.append(text)
        return text
