"""The answers of one run, on disk as they come: what makes a run resumable. Imports no torch.

`answers.jsonl` opens with a line that describes the run; each line after it is one answer. A line is there
whole or not at all: one that was cut short is dropped when the file is opened again.
"""

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from model.evaluation.errors import AnswersError

FILE = "answers.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """One question's outcome."""

    question: str
    expected: str
    #: The model's label; empty if it gave none.
    predicted: str
    #: Why the question could not be asked; such a one counts as answered wrongly.
    error: str | None = None
    #: What the label was read from.
    evidence: Mapping[str, object]
    prompt_tokens: int = 0
    #: Of the prompt, those found in the prefix cache.
    cached_tokens: int = 0

    @property
    def correct(self) -> bool:
        """Whether the label is the expected one."""
        return self.predicted == self.expected


class Answers:
    """The open file; `done` maps a question's key to its answer."""

    def __init__(self, file: BinaryIO, done: dict[str, Answered]) -> None:
        self._file = file
        self.done = done

    def add(self, answered: Answered) -> None:
        """Keep one more, safe from the end of this process when the call returns."""
        _write(self._file, asdict(answered))
        self.done[answered.question] = answered


@contextmanager
def opened(folder: Path, run: Mapping[str, object], *, restart: bool = False) -> Iterator[Answers]:
    """Open the answers in `folder`, which is made, and continue them; `restart` drops what is there.

    Raises AnswersError where they are another run's (the message says what differs), are being written by
    another process, are damaged, or the folder can not be written.
    """
    path = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    except OSError as error:
        raise AnswersError(f"{path} can not be written: {error.strerror}") from error
    with file:
        _lock(file, path)
        if restart:
            file.truncate(0)
        yield Answers(file, _resume(file, path, run))


def _resume(file: BinaryIO, path: Path, run: Mapping[str, object]) -> dict[str, Answered]:
    file.seek(0)
    content = file.read()
    whole = content[: content.rfind(b"\n") + 1]
    file.truncate(len(whole))
    if not whole:
        _write(file, {"run": run})
        return {}
    lines = whole.splitlines()
    _require_same(path, _parsed(lines[0], path, 1).get("run"), run)
    done: dict[str, Answered] = {}
    for number, line in enumerate(lines[1:], 2):
        try:
            answered = Answered(**_parsed(line, path, number))
        except TypeError as error:
            raise AnswersError(
                f"{path}, line {number}: not an answer; give --restart to begin anew"
            ) from error
        done[answered.question] = answered
    return done


def _require_same(path: Path, found: object, run: Mapping[str, object]) -> None:
    before = found if isinstance(found, dict) else {}
    if differing := [name for name in run if before.get(name) != run[name]]:
        changes = "; ".join(_change(name, before, run) for name in differing)
        raise AnswersError(
            f"{path} holds another run's answers: {changes}; give another --output, or --restart to drop them"
        )


def _change(name: str, before: Mapping[str, object], now: Mapping[str, object]) -> str:
    """In words; a hash says nothing to a person."""
    if name in ("questions", "checkpoint"):
        return f"{name} differ" if name == "questions" else f"{name} differs"
    return f"{name} was {before.get(name)}, is {now[name]}"


def _parsed(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise AnswersError(f"{path}, line {number}: damaged; give --restart to begin anew") from error
    if not isinstance(value, dict):
        raise AnswersError(f"{path}, line {number}: damaged; give --restart to begin anew")
    return value


def _lock(file: BinaryIO, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise AnswersError(
            f"another process is writing {path}: wait for it, or give another --output"
        ) from error


def _write(file: BinaryIO, value: object) -> None:
    file.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")
    file.flush()
