"""Text → answer: what chat models leave at the end of it is cut off.

Owns the rules of the family's old and new end markers; the engine has cut at the request's stop strings.
"""

from collections.abc import Iterable

#: What an unfinished character decodes to.
_UNFINISHED = "\ufffd"


def answer(text: str, end_markers: Iterable[str], *, trim: bool = True) -> str:
    """The text up to the first end marker, without surrounding white space if `trim`."""
    end = min((at for mark in end_markers if (at := text.find(mark)) >= 0), default=len(text))
    return text[:end].strip() if trim else text[:end]


def whole_characters(text: str) -> str:
    """Without a last character that `max_tokens` cut in two: its bytes come in several tokens."""
    return text.rstrip(_UNFINISHED)
