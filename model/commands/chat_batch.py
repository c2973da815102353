"""`model chat` with questions given beforehand: all at once through the engine, answers in order."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from model.chat import Message
from model.commands.talker import Talker, as_record
from model.errors import RequestError
from model.request import Completion, SamplingParams

#: Characters of a question that are shown.
_SHOWN = 400


@dataclass(frozen=True, slots=True)
class _Answer:
    completion: Completion
    seconds: float


def answer_all(
    talker: Talker, dialogues: Sequence[Sequence[Message]], params: SamplingParams, *, as_json: bool
) -> int:
    """Print each answer as soon as those before it are printed; the number of dialogues that had none.

    A dialogue that the engine refuses is reported in its place.
    """
    started = time.perf_counter()
    answers: dict[int, _Answer | RequestError] = {}
    for number, messages in enumerate(dialogues):
        try:
            talker.engine.add(talker.request(str(number), messages, params))
        except RequestError as error:
            answers[number] = error
    printed = 0
    with _bar(len(dialogues)) as bar:
        task = bar.add_task("answers", total=len(dialogues), completed=len(answers))
        while printed < len(dialogues):
            while printed in answers:
                _print(printed, dialogues[printed], answers[printed], as_json=as_json)
                printed += 1
            for completion in talker.engine.step() if printed < len(dialogues) else ():
                seconds = time.perf_counter() - started
                answers[int(completion.request_id)] = _Answer(completion, seconds)
                bar.advance(task)
    done = [answer for answer in answers.values() if isinstance(answer, _Answer)]
    if not as_json:
        _print_summary(done, time.perf_counter() - started)
    return len(dialogues) - len(done)


def _print(
    number: int, messages: Sequence[Message], answer: _Answer | RequestError, *, as_json: bool
) -> None:
    if isinstance(answer, RequestError):
        if as_json:
            failure = {"code": answer.code, "message": str(answer)}
            typer.echo(json.dumps({"index": number, "error": failure}, ensure_ascii=False))
        else:
            typer.echo(f"Question[{number}]: {_short(messages)}")
        typer.echo(f"error[{answer.code}]: question {number}: {answer}", err=True)
        return
    completion, seconds = answer.completion, answer.seconds
    if as_json:
        typer.echo(json.dumps({"index": number, **as_record(completion, seconds)}, ensure_ascii=False))
        return
    tokens = len(completion.token_ids)
    typer.echo(f"Question[{number}]: {_short(messages)}")
    typer.echo(f"Answer[{number}]: {completion.text}")
    typer.echo(
        f"Generate[{number}] token num: {tokens} ({completion.finish_reason}; {completion.prompt_tokens} in "
        f"the prompt; {tokens / seconds:.1f} tokens/s)\n"
    )


def _print_summary(done: Sequence[_Answer], seconds: float) -> None:
    tokens = sum(len(answer.completion.token_ids) for answer in done)
    typer.echo(
        f"{len(done)} answers, {tokens} tokens in {seconds:.2f} s: {tokens / seconds:.1f} tokens/s", err=True
    )


def _short(messages: Sequence[Message]) -> str:
    text = messages[-1]["content"]
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text)} characters)"


def _bar(total: int) -> Progress:
    """A bar on stderr, where that is a terminal and there is something to wait for."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=total < 2 or not console.is_terminal)
