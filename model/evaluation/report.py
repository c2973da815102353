"""The scores of a run: per subject and over all questions, as a table, CSV and JSON. Imports no torch."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from model.errors import PromptTooLong
from model.evaluation.answers import Answered
from model.evaluation.task import Question


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How many of a subject's questions are answered rightly."""

    subject: str
    correct: int
    total: int

    @property
    def accuracy(self) -> float:
        """The share, from 0 to 1."""
        return self.correct / self.total


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A run's scores. `total` counts every question once: the micro average."""

    subjects: tuple[Score, ...]
    total: Score
    #: Questions that could not be asked, because the prompt is longer than the context: counted as wrong.
    too_long: int
    #: Questions whose completion had no text: counted as wrong.
    unanswered: int
    prompt_tokens: int
    cached_tokens: int


def report(questions: Sequence[Question], done: Mapping[str, Answered]) -> Report:
    """Score the questions, all of which are done, in the order of their subjects."""
    outcomes: dict[str, list[Answered]] = {}
    for question in questions:
        outcomes.setdefault(question.subject, []).append(done[question.key])
    every = [answered for group in outcomes.values() for answered in group]
    too_long = sum(answered.error == PromptTooLong.code for answered in every)
    return Report(
        subjects=tuple(_score(subject, group) for subject, group in outcomes.items()),
        total=_score("total", every),
        too_long=too_long,
        unanswered=sum(not answered.predicted for answered in every) - too_long,
        prompt_tokens=sum(answered.prompt_tokens for answered in every if answered.error is None),
        cached_tokens=sum(answered.cached_tokens for answered in every),
    )


def _score(subject: str, group: Sequence[Answered]) -> Score:
    return Score(subject=subject, correct=sum(answered.correct for answered in group), total=len(group))


def write_csv(path: Path, found: Report) -> None:
    """Write subject, correct, total and accuracy: one row for each subject and a last one for all."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("subject", "correct", "total", "accuracy"))
        for score in (*found.subjects, found.total):
            writer.writerow((score.subject, score.correct, score.total, f"{score.accuracy:.6f}"))


def summary(found: Report) -> dict[str, object]:
    """As JSON can hold it."""
    return {
        "questions": found.total.total,
        "correct": found.total.correct,
        "accuracy": found.total.accuracy,
        "too_long": found.too_long,
        "unanswered": found.unanswered,
        "prompt_tokens": found.prompt_tokens,
        "cached_tokens": found.cached_tokens,
        "subjects": [
            {"subject": one.subject, "correct": one.correct, "total": one.total, "accuracy": one.accuracy}
            for one in found.subjects
        ],
    }


def table(found: Report, title: str) -> Table:
    """For a terminal; accuracies in percent."""
    grid = Table("subject", title=title)
    for name in ("correct", "total", "accuracy"):
        grid.add_column(name, justify="right")
    for score in found.subjects:
        grid.add_row(*_cells(score))
    grid.add_section()
    grid.add_row(*_cells(found.total))
    return grid


def _cells(score: Score) -> tuple[str, str, str, str]:
    return score.subject, str(score.correct), str(score.total), f"{score.accuracy:.2%}"
