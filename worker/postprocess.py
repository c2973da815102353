"""Text → answer: what chat models leave at the end of it is cut off.

Owns the rules of the family's old and new end markers; the engine has cut at the request's stop strings.
"""

from collections.abc import Iterable


def answer(text: str, end_markers: Iterable[str], stop: Iterable[str] = (), *, trim: bool = True) -> str:
    """The text up to the first end marker or stop string, without surrounding white space if `trim`."""
    end = min((at for mark in (*end_markers, *stop) if (at := text.find(mark)) >= 0), default=len(text))
    return text[:end].strip() if trim else text[:end]
