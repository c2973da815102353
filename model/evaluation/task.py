"""What an evaluation is made of: questions with their answers, and how a model's are read. No torch."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from model.chat import Message
from model.request import Completion, SamplingParams
from model.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One prompt and the label that is right."""

    #: Unique in its task and the same in every run: `subject/number`, numbered from 0 in the file's order.
    key: str
    #: The row of the report that it counts for.
    subject: str
    #: Text to continue, or a conversation to answer.
    prompt: str | tuple[Message, ...]
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What the model answered."""

    #: The label; empty if the model gave none.
    label: str
    #: What the label was read from, for a person to check.
    evidence: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Questions and how they are asked and scored."""

    name: str
    #: What the caller chose about it.
    settings: Mapping[str, object]
    #: Those of one subject stand together, so that the engine computes what they share once.
    questions: tuple[Question, ...]
    #: How to ask with a checkpoint's tokenizer. Raises TaskError.
    params: Callable[[Tokenizer], SamplingParams]
    #: Read the answer from the completion.
    predict: Callable[[Completion], Prediction]


def sample(questions: Sequence[Question], limit: int | None, seed: int) -> list[Question]:
    """`limit` of the questions in their order, drawn by `seed`; all of them where there are no more."""
    if limit is None or limit >= len(questions):
        return list(questions)
    chosen = random.Random(seed).sample(range(len(questions)), limit)  # noqa: S311 - a sample, no secret
    return [questions[number] for number in sorted(chosen)]
