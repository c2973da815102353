"""Jobs for a fleet of echo engines, and what must come of each line.

Owns the inputs and the expectations. Never looks at a result.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs import dialogue
from tests.chaos.injected.chaos_hooks import ABORTS, HANGS

#: Words that make a line deadly to engines, by death and by standstill.
DEADLY = (ABORTS, HANGS)

_WORDS = ("sheep", "Schafe", "羊", "brebis", "mouton", "🐑", "ovejas", "owce")


@dataclass(frozen=True, slots=True)
class Line:
    """A line of input, and its answer or the code of its error."""

    text: str
    custom_id: str | None = None
    error: str | None = None
    #: How long its answer is, where a real model gives it: not what it says.
    tokens: int | None = None

    @property
    def raw(self) -> bytes:
        """As it is submitted."""
        if self.error == dialogue.INVALID_JSON:
            return self.text.encode()
        line: dict[str, object] = {"messages": [{"role": "user", "content": self.text}]}
        if self.custom_id is not None:
            line["custom_id"] = self.custom_id
        if self.tokens is not None:
            line |= {"max_tokens": self.tokens, "ignore_eos": True}
        return json.dumps(line).encode()


@dataclass(frozen=True, slots=True)
class Work:
    """A job's lines."""

    lines: tuple[Line, ...]

    @property
    def failed(self) -> int:
        """Lines that come out as errors."""
        return sum(line.error is not None for line in self.lines)

    def write(self, path: Path) -> Path:
        """The input file."""
        path.write_bytes(b"".join(line.raw + b"\n" for line in self.lines))
        return path


def work(draws: random.Random, lines: int, *, longest: int = 60, deadly: Sequence[bytes] = ()) -> Work:
    """A job of so many lines whose answers end one after another; each word of
    `deadly` goes into one of them."""
    made = [_line(draws, number, longest) for number in range(1, lines + 1)]
    for word in deadly:
        place = draws.randrange(len(made))
        while made[place].error is not None:
            place = (place + 1) % len(made)
        text = f"{made[place].text} {word.decode()}"
        made[place] = Line(text, made[place].custom_id, dialogue.ENGINE_ERROR)
    return Work(tuple(made))


def real_work(draws: random.Random, lines: int) -> Work:
    """A job for a real model, whose answers are of all lengths."""
    return Work(
        tuple(
            Line(f"Tell a story about {number} sheep.", f"line {number}", tokens=draws.randrange(4, 40))
            for number in range(1, lines + 1)
        )
    )


def _line(draws: random.Random, number: int, longest: int) -> Line:
    if draws.random() < 0.03:
        return Line(f"not json {number}", error=dialogue.INVALID_JSON)
    text = f"{number} {draws.choice(_WORDS)}"
    text += "." * (draws.randrange(longest) - len(text.encode()))
    return Line(text, f"line {number}" if draws.random() < 0.7 else None)
