"""`model chat` at a terminal, or with lines from a pipe: one dialogue, one answer at a time."""

import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

import typer
from rich.console import Console

from model.chat import Message
from model.commands.talker import Talker, as_record
from model.errors import RequestError
from model.request import Completion, SamplingParams
from model.stream import Stream

_PROMPT = "> "
_RESET, _EXIT, _HELP = "/reset", "/exit", "/help"
_USAGE = f"Ctrl-C ends an answer, {_RESET} begins anew, {_EXIT} or Ctrl-D ends"


@dataclass(slots=True)
class _Session:
    """The dialogue so far."""

    talker: Talker
    params: SamplingParams
    as_json: bool
    #: For notes beside the dialogue: stderr, and colours where that is a terminal.
    notes: Console
    messages: list[Message] = field(default_factory=list)
    turns: int = 0


def converse(talker: Talker, params: SamplingParams, *, as_json: bool) -> None:
    """Answer line after line until the input ends."""
    notes = Console(stderr=True, highlight=False)
    session = _Session(talker, params, as_json, notes)
    at_terminal = sys.stdin.isatty()
    if at_terminal:
        import readline  # noqa: F401, PLC0415 - gives input() a history and line editing

        notes.print(f"{talker.engine.config.path.name}: {_USAGE}", style="dim", markup=False)
    for line in _lines(session, at_terminal=at_terminal):
        match line.strip():
            case "":
                continue
            case command if command == _EXIT:
                return
            case command if command == _RESET:
                session.messages.clear()
                notes.print("a new dialogue", style="dim")
            case command if command == _HELP:
                notes.print(_USAGE, style="dim", markup=False)
            case _:
                _take_turn(session, line)


def _lines(session: _Session, *, at_terminal: bool) -> Iterator[str]:
    """What the user enters, without the line's end."""
    if not at_terminal:
        for line in sys.stdin:
            yield line.rstrip("\n")
        return
    while True:
        try:
            yield input(_PROMPT)
        except EOFError:
            sys.stdout.write("\n")
            return
        except KeyboardInterrupt:
            session.notes.print(f"\n{_USAGE}", style="dim", markup=False)


def _take_turn(session: _Session, text: str) -> None:
    """Answer one message; one that the engine refuses is reported and forgotten."""
    talker = session.talker
    question = {"role": "user", "content": text}
    history = [] if talker.raw else session.messages
    try:
        request = talker.request(f"turn-{session.turns}", [*history, question], session.params)
        started = time.perf_counter()
        stream = Stream(talker.engine, request)
    except RequestError as error:
        typer.echo(f"error[{error.code}]: {error}; {_RESET} begins a new dialogue", err=True)
        return
    session.turns += 1
    completion = _show(stream, quiet=session.as_json)
    seconds = time.perf_counter() - started
    session.messages += [question, {"role": "assistant", "content": completion.text}]
    if session.as_json:
        typer.echo(json.dumps(as_record(completion, seconds), ensure_ascii=False))
    elif session.notes.is_terminal:
        tokens = len(completion.token_ids)
        session.notes.print(f"{tokens} tokens, {tokens / seconds:.1f} tokens/s", style="dim")


def _show(stream: Stream, *, quiet: bool) -> Completion:
    """Write the answer as it comes, until it ends or Ctrl-C ends it."""

    def write(piece: str) -> None:
        if piece and not quiet:
            sys.stdout.write(piece)
            sys.stdout.flush()

    with _interruptible() as interrupted:
        for piece in stream:
            write(piece)
            if interrupted:
                write(stream.abort())
                break
    write("\n")
    assert stream.completion is not None  # noqa: S101 - it has ended one way or the other
    return stream.completion


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """Collect Ctrl-C instead of raising KeyboardInterrupt, so that no step of the engine is cut in two."""
    caught: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        caught.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield caught
    finally:
        signal.signal(signal.SIGINT, before)
