"""`model evaluate`: a model's score on published questions → table, CSV and JSON, resumed where it ended."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from model.commands import console
from model.commands.options import CheckpointArgument, EngineOptions, JsonOption, with_records
from model.config import EngineConfig
from model.evaluation import boolq, ceval
from model.evaluation.answers import Answered, Answers, opened
from model.evaluation.fingerprint import description, short_name
from model.evaluation.report import Report, report, summary, table, write_csv
from model.evaluation.task import Question, Task, sample

_SHOTS = 5


class TaskName(StrEnum):
    """What there is to be asked."""

    BOOLQ = "boolq"
    CEVAL = "ceval"


@with_records
def evaluate(  # noqa: PLR0917 - typer passes them by name
    checkpoint: CheckpointArgument,
    task: Annotated[TaskName, typer.Argument(metavar="boolq|ceval", help="The questions to ask.")],
    data: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="Where the questions are: BoolQ's .jsonl files, or C-Eval's dev and val."
        ),
    ],
    engine: EngineOptions,
    shots: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=0, help="Examples before each question; C-Eval only.", show_default=f"{_SHOTS}"
        ),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Ask in the model's chat format; C-Eval only.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Ask a sample of N.", show_default="all")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Which sample.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Folder for answers and scores.",
            show_default="evaluations/ and the run's name",
        ),
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Drop the answers that are there.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Score the model in folder CKPT on BoolQ or C-Eval, by the rules of MindIE's modeltest.

    Each answer is kept as it comes: the same command continues where it was interrupted.
    """
    with console.errors(as_json):
        chosen = _load(task, data, shots, chat=chat)
        questions = sample(chosen.questions, limit, seed)
        config = engine.config(checkpoint)
        run = description(chosen, config)
        folder = output or _default_folder(checkpoint, task, run)
        with opened(folder, run, restart=restart) as answers:
            asked, seconds = _ask(config, chosen, questions, answers)
            found = report(questions, answers.done)
        facts = {
            "task": task.value,
            "checkpoint": str(checkpoint),
            "run": run,
            "limit": limit,
            "seed": seed,
            **summary(found),
            "asked_now": asked,
            "seconds": round(seconds, 1),
            "output": str(folder),
        }
        write_csv(folder / "scores.csv", found)
        (folder / "summary.json").write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
    if as_json:
        typer.echo(json.dumps(facts))
        return
    _show(found, f"{task}, {checkpoint.name}", folder)


def _load(task: TaskName, data: Path, shots: int | None, *, chat: bool) -> Task:
    if task is TaskName.CEVAL:
        return ceval.load(data, shots=_SHOTS if shots is None else shots, chat=chat)
    if shots:
        raise typer.BadParameter("BoolQ is asked without examples: leave --shots out")
    if chat:
        raise typer.BadParameter("BoolQ compares two words after a plain prompt: leave --chat out")
    return boolq.load(data)


def _default_folder(checkpoint: Path, task: TaskName, run: dict[str, object]) -> Path:
    """One for each run, so that another setting finds its own answers or none."""
    return Path("evaluations") / f"{checkpoint.resolve().name}-{task}-{short_name(run)}"


def _ask(
    config: EngineConfig, task: Task, questions: Sequence[Question], answers: Answers
) -> tuple[int, float]:
    """Ask what has no answer yet. Return how many that were, and the seconds without loading the model."""
    missing = [question for question in questions if question.key not in answers.done]
    before = [answers.done[question.key] for question in questions if question.key in answers.done]
    if not missing:
        return 0, 0.0

    # torch takes seconds to import: not needed where all is answered, or for --help.
    from model.engine import Engine  # noqa: PLC0415
    from model.evaluation.feed import answered  # noqa: PLC0415

    engine = Engine(config)
    start = time.monotonic()
    try:
        with _progress(task.name, len(questions), before) as advance:
            for one in answered(engine, task, missing):
                answers.add(one)
                advance(one)
    except KeyboardInterrupt:
        known = sum(question.key in answers.done for question in questions)
        typer.echo(f"{known} of {len(questions)} are answered: the same command continues", err=True)
        raise
    finally:
        engine.close()
    return len(missing), time.monotonic() - start


@contextmanager
def _progress(name: str, total: int, before: Sequence[Answered]) -> Iterator[Callable[[Answered], None]]:
    """Show questions done and the accuracy so far, on stderr where that is a terminal."""
    stderr = Console(stderr=True)
    columns: Any = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("accuracy {task.fields[accuracy]}"),
        TimeRemainingColumn(),
    )
    done, correct = len(before), sum(one.correct for one in before)
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        row = bar.add_task(name, total=total, completed=done, accuracy=_percent(correct, done))

        def advance(one: Answered) -> None:
            nonlocal done, correct
            done, correct = done + 1, correct + one.correct
            bar.update(row, completed=done, accuracy=_percent(correct, done))

        yield advance


def _percent(correct: int, done: int) -> str:
    return f"{correct / done:.1%}" if done else "…"


def _show(found: Report, title: str, folder: Path) -> None:
    Console().print(table(found, title))
    if found.too_long:
        typer.echo(f"{found.too_long} prompts are longer than the context: counted as wrong")
    if found.unanswered:
        typer.echo(f"{found.unanswered} answers hold no text: counted as wrong")
    typer.echo(f"answers, scores.csv and summary.json are in {folder}")
