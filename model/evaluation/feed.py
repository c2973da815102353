"""Questions through the engine, a bounded number at a time, and their answers as they finish."""

from collections import deque
from collections.abc import Iterator, Sequence

from model.chat import Chat
from model.engine import Engine
from model.errors import PromptTooLong
from model.evaluation.answers import Answered
from model.evaluation.errors import TaskError
from model.evaluation.task import Question, Task
from model.request import Request

#: Requests in the engine for each one that can run: enough that none of its places stays empty.
_AHEAD = 2


def answered(engine: Engine, task: Task, questions: Sequence[Question]) -> Iterator[Answered]:
    """Yield each question's outcome, in the order in which they finish.

    A prompt that is longer than the context is not asked: its outcome has an error and no label. Raises
    TaskError for a checkpoint without a tokenizer, and what the engine raises.
    """
    if (chat := engine.chat) is None:
        raise TaskError("the model folder has no tokenizer: it can not be asked questions")
    params = task.params(chat.tokenizer)
    waiting, live = deque(questions), dict[str, Question]()
    try:
        while waiting or live:
            while waiting and len(live) < _AHEAD * engine.config.max_num_seqs:
                question = waiting.popleft()
                prompt = _encoded(chat, question)
                try:
                    engine.add(Request(id=question.key, prompt_token_ids=prompt, params=params))
                except PromptTooLong as error:
                    yield _refused(question, error, len(prompt))
                else:
                    live[question.key] = question
            for completion in engine.step():
                question = live.pop(completion.request_id)
                prediction = task.predict(completion)
                yield Answered(
                    question=question.key,
                    expected=question.answer,
                    predicted=prediction.label,
                    evidence=prediction.evidence,
                    prompt_tokens=completion.prompt_tokens,
                    cached_tokens=completion.cached_tokens,
                )
    finally:
        for key in live:
            engine.abort(key)


def _encoded(chat: Chat, question: Question) -> tuple[int, ...]:
    """Text begins as the checkpoint's tokenizer begins it, with BOS or not; turns are its template's."""
    if isinstance(question.prompt, str):
        return tuple(chat.tokenizer.encode(question.prompt))
    return tuple(chat.encode(question.prompt))


def _refused(question: Question, error: PromptTooLong, prompt_tokens: int) -> Answered:
    return Answered(
        question=question.key,
        expected=question.answer,
        predicted="",
        error=error.code,
        evidence={},
        prompt_tokens=prompt_tokens,
    )
