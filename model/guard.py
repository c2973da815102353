"""Breaks control tokens that are written out in a message, so that a template's own are the only ones left.

Owns the mark: one character that occurs in no message. Put inside every control text of a message, it keeps
that text from being found as a token in the rendered prompt; it is taken out again before encoding.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from model.errors import InvalidMessages

#: Private-use planes: 131,068 characters that mean nothing to anybody.
_MARKS = tuple(chr(i) for start in (0xF0000, 0x100000) for i in range(start, start + 0xFFFE))


class Guard:
    """The control texts of one tokenizer, as patterns over messages."""

    def __init__(self, control: Iterable[str]) -> None:
        texts = set(control)
        # Only the first character is consumed, so that texts that overlap are found too.
        self._whole = _compile("|".join(f"{re.escape(text[0])}(?={re.escape(text[1:])})" for text in texts))
        heads = {text[:n] for text in texts for n in range(1, len(text))}
        tails = {text[n:] for text in texts for n in range(1, len(text))}
        # Two messages that a template puts side by side must not make a control text together.
        self._head_at_end = _compile(rf"(?:{_any(heads)})(?=\s*\Z)" if heads else "")
        self._tail_at_start = _compile(rf"\A\s*(?={_any(tails)})" if tails else "")

    def apply(self, messages: Sequence[Mapping[str, str]]) -> tuple[str, list[dict[str, str]]]:
        """Return the mark, and the messages with it wherever a control text has to be broken."""
        mark = unused_mark(value for message in messages for value in message.values())
        return mark, [
            {key: value if key == "role" else self._broken(value, mark) for key, value in message.items()}
            for message in messages
        ]

    def _broken(self, text: str, mark: str) -> str:
        text = self._whole.sub(rf"\g<0>{mark}", text)
        text = self._head_at_end.sub(rf"\g<0>{mark}", text, count=1)
        return self._tail_at_start.sub(rf"\g<0>{mark}", text, count=1)


def unused_mark(texts: Iterable[str]) -> str:
    """Return a private-use character that is in none of the texts. Raises InvalidMessages if all are."""
    used: set[str] = set().union(*texts)
    mark = next((mark for mark in _MARKS if mark not in used), None)
    if mark is None:
        raise InvalidMessages("the messages use all private-use characters of Unicode: leave one out")
    return mark


def _any(texts: Iterable[str]) -> str:
    return "|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True))


def _compile(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern or r"(?!)", re.DOTALL)
