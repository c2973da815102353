"""BoolQ, 0-shot: is the answer to a question about a passage yes or no?

One position is computed: the answer is yes where the logit of `yes` is larger than that of `no`.
Data: JSON lines with title, passage, question and answer (true or false), as Google's dev.jsonl
(arXiv 1905.10044).
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from model.evaluation.errors import DataError, TaskError
from model.evaluation.task import Prediction, Question, Task
from model.request import Completion, SamplingParams
from model.tokenizer import Tokenizer

#: Their last tokens are the two choices: so modeltest finds them, whatever the tokenizer does with spaces.
_CARRIERS = ("How can we learning machine learning: yes", "How can we learning machine learning: no")
_KINDS = {"title": str, "passage": str, "question": str, "answer": bool}


def load(data: Path) -> Task:
    """Read a .jsonl file, or every one of a folder: each is a row of the report. Raises DataError."""
    files = [data] if data.is_file() else sorted(data.glob("*.jsonl"))
    if not files:
        raise DataError(f"{data} holds no .jsonl file: give the folder of BoolQ's dev.jsonl")
    return Task(
        name="boolq",
        settings={"shots": 0, "chat": False},
        questions=tuple(question for file in files for question in _read(file)),
        params=_params,
        predict=_predict,
    )


def choice_ids(tokenizer: Tokenizer) -> tuple[int, int]:
    """The ids of yes and of no. Raises TaskError for a tokenizer that does not tell them apart."""
    yes, no = (tokenizer.encode(text, add_bos=False)[-1] for text in _CARRIERS)
    if yes == no:
        raise TaskError(f"the tokenizer ends both `yes` and `no` in token {yes}: BoolQ can not be scored")
    return yes, no


def _params(tokenizer: Tokenizer) -> SamplingParams:
    return SamplingParams(
        max_tokens=1, temperature=0, ignore_eos=True, logprobs=0, logprob_token_ids=choice_ids(tokenizer)
    )


def _predict(completion: Completion) -> Prediction:
    """The two log-probabilities differ as the two logits do: they are of one position."""
    (position,) = completion.logprobs or ()
    (_, yes), (_, no) = position.asked
    return Prediction(label=_label(yes > no), evidence={"yes_minus_no": yes - no})


def _label(answer: bool) -> str:
    return "yes" if answer else "no"


def _read(file: Path) -> Sequence[Question]:
    questions = [
        Question(
            key=f"{file.stem}/{number}",
            subject=file.stem,
            prompt="{title} -- {passage}\nQuestion: {question}?\nAnswer:".format(**entry),
            answer=_label(entry["answer"] is True),
        )
        for number, entry in enumerate(_entries(file))
    ]
    if not questions:
        raise DataError(f"{file} holds no question")
    return questions


def _entries(file: Path) -> Iterator[dict[str, object]]:
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _entry(line, f"{file}, line {number}")
    except OSError as error:
        raise DataError(f"{file} can not be read: {error.strerror}") from error


def _entry(line: bytes, place: str) -> dict[str, object]:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise DataError(f"{place}: not valid JSON: {error}") from error
    if not isinstance(entry, dict):
        raise DataError(f"{place}: not a JSON object")
    for name, kind in _KINDS.items():
        if not isinstance(entry.get(name), kind):
            wanted = "true or false" if kind is bool else "text"
            raise DataError(f"{place}: {name} must be {wanted}, not {entry.get(name)!r}")
    return entry
