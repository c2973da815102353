"""C-Eval's validation split, few-shot: Chinese multiple-choice questions (arXiv 2305.08322).

The model continues the prompt greedily by 20 tokens; the first character that is no space is its choice.
Data: the folder of the published archive, with `val/SUBJECT_val.csv`, `dev/SUBJECT_dev.csv` and
`subject_mapping.json`, whose keys are the subjects in their order.

The header names the subject as modeltest does: the key's words, each with a space before it, which makes two
spaces after "about".
"""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from model.chat import Message
from model.evaluation.errors import DataError
from model.evaluation.task import Prediction, Question, Task
from model.request import Completion, SamplingParams
from model.tokenizer import Tokenizer

_CHOICES = ("A", "B", "C", "D")
_COLUMNS = ("question", *_CHOICES, "answer")
_MAX_TOKENS = 20

Row = Mapping[str, str]


def load(data: Path, *, shots: int = 5, chat: bool = False) -> Task:
    """Read all subjects; the first `shots` rows of dev are the examples. Raises DataError.

    `chat` makes the header a system message and each example a turn.
    """
    return Task(
        name="ceval",
        settings={"shots": shots, "chat": chat},
        questions=tuple(
            question
            for subject in _subjects(data / "subject_mapping.json")
            for question in _questions(data, subject, shots, chat=chat)
        ),
        params=_params,
        predict=_predict,
    )


def _params(_: Tokenizer) -> SamplingParams:
    return SamplingParams(max_tokens=_MAX_TOKENS, temperature=0)


def _predict(completion: Completion) -> Prediction:
    return Prediction(label=completion.text.lstrip()[:1], evidence={"text": completion.text})


def _questions(data: Path, subject: str, shots: int, *, chat: bool) -> Sequence[Question]:
    dev = data / "dev" / f"{subject}_dev.csv"
    examples = _read(dev)[:shots] if shots else []
    if len(examples) < shots:
        raise DataError(f"{dev} holds {len(examples)} examples, which is fewer than {shots} shots")
    head = _header(subject)
    prompt = _conversation if chat else _text
    return [
        Question(
            key=f"{subject}/{number}",
            subject=subject,
            prompt=prompt(head, examples, row),
            answer=row["answer"],
        )
        for number, row in enumerate(_read(data / "val" / f"{subject}_val.csv"))
    ]


def _header(subject: str) -> str:
    words = "".join(f" {word}" for word in subject.split("_"))
    return f"The following are multiple choice questions (with answers) about {words}.\n\n"


def _text(head: str, examples: Sequence[Row], row: Row) -> str:
    return head + "".join(f"{_ask(one)} {one['answer']}\n\n" for one in examples) + _ask(row)


def _conversation(head: str, examples: Sequence[Row], row: Row) -> tuple[Message, ...]:
    turns: list[Message] = [{"role": "system", "content": head}]
    for one in examples:
        turns.append({"role": "user", "content": _ask(one)})
        turns.append({"role": "assistant", "content": one["answer"]})
    return (*turns, {"role": "user", "content": _ask(row)})


def _ask(row: Row) -> str:
    options = "".join(f"\n{choice}. {row[choice]}" for choice in _CHOICES)
    return f"{row['question']}{options}\nAnswer:"


def _subjects(file: Path) -> Sequence[str]:
    try:
        subjects = json.loads(file.read_text("utf-8-sig"))
    except OSError as error:
        raise DataError(f"{file} can not be read: {error.strerror}; is this C-Eval's folder?") from error
    except ValueError as error:
        raise DataError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(subjects, dict) or not subjects:
        raise DataError(f"{file} must be an object whose keys are the subjects")
    return list(subjects)


def _read(file: Path) -> list[Row]:
    """The rows with every field as text: an option `None` or `1e3` is those characters. Raises DataError."""
    rows: list[Row] = []
    number = 1
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines, strict=True)
            header = next(reader, [])
            if missing := [name for name in _COLUMNS if name not in header]:
                raise DataError(f"{file}, line 1: no column {', '.join(missing)}")
            number = reader.line_num + 1
            for fields in reader:
                if fields:
                    rows.append(_row(header, fields, f"{file}, line {number}"))
                number = reader.line_num + 1
    except OSError as error:
        raise DataError(f"{file} can not be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8: {error.reason} at byte {error.start}") from error
    except csv.Error as error:
        raise DataError(f"{file}, line {number}: not valid CSV: {error}") from error
    if not rows:
        raise DataError(f"{file} holds no question")
    return rows


def _row(header: Sequence[str], fields: Sequence[str], place: str) -> Row:
    if len(fields) != len(header):
        raise DataError(f"{place}: {len(fields)} fields where the header has {len(header)}")
    row = dict(zip(header, fields, strict=True))
    if row["answer"] not in _CHOICES:
        raise DataError(f"{place}: the answer must be one of {', '.join(_CHOICES)}, not {row['answer']!r}")
    return row
