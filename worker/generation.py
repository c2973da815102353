"""Dialogues → result lines: encoding, the engine, post-processing, and what becomes of lines that fail.

Owns the way of a line between its validation and its checkpoint. Knows neither ledger nor store.
"""

import queue
import time
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

import msgspec
import structlog

from jobs import dialogue
from jobs.dialogue import Dialogue, Sampling
from jobs.records import JobSpec
from jobs.settings import Settings
from model.chat import Chat
from model.errors import ModelError
from model.request import TokenLogprob
from worker.engine_host import EngineHost
from worker.errors import EngineDiedError, RequestRefusedError
from worker.postprocess import answer, whole_characters
from worker.protocol import Finished
from worker.sampling import sampling_params

log = structlog.get_logger(__name__)

#: How long to wait for an answer before the caller gets to look at its lease.
_TICK_SECONDS = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultLine:
    """One finished line."""

    number: int
    output: bytes
    engine_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The engine and all that is known of its model: what the shards of a worker share."""

    name: str
    engine: EngineHost
    chat: Chat
    max_model_len: int
    #: What the checkpoint's generation_config.json asks for.
    defaults: Sampling
    versions: dict[str, str]


def generate(
    model: Model, settings: Settings, spec: JobSpec, dialogues: Iterable[Dialogue], prefix: str
) -> Generator[list[ResultLine]]:
    """Results as they come, at least an empty list every quarter of a second.

    `prefix` makes the requests' ids unique in the engine. Closing the iterator aborts what is unanswered.
    """
    flight = _Flight(model, settings, spec, prefix)
    try:
        for each in dialogues:
            flight.submit(each)
            if settled := flight.settled(wait=0):
                yield settled
        while flight.unanswered:
            yield flight.settled(wait=_TICK_SECONDS)
    finally:
        flight.abort()


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A line in the engine, and how many engines have died with it inside."""

    dialogue: Dialogue
    request_id: str
    deaths: int = 0


class _Flight:
    """The lines of one shard that are in the engine."""

    def __init__(self, model: Model, settings: Settings, spec: JobSpec, prefix: str) -> None:
        self._model = model
        self._settings = settings
        self._spec = spec
        self._prefix = prefix
        self._attempts: dict[Future[Finished], _Attempt] = {}
        self._answered: queue.SimpleQueue[Future[Finished]] = queue.SimpleQueue()
        #: Lines that failed on their way in.
        self._failed: list[ResultLine] = []

    @property
    def unanswered(self) -> bool:
        """Whether anything is still to be settled."""
        return bool(self._attempts or self._failed)

    def submit(self, line: Dialogue) -> None:
        """Send a line to the engine."""
        prepared = line.prepared(self._spec.system, self._spec.prompt_template)
        self._send(_Attempt(prepared, f"{self._prefix}/{line.line}"))

    def settled(self, wait: float) -> list[ResultLine]:
        """Lines that are finished, waiting up to `wait` seconds for the first of them."""
        lines, self._failed = self._failed, []
        if wait and not lines:
            try:
                lines.extend(self._settle(self._answered.get(timeout=wait)))
            except queue.Empty:
                return []
        while not self._answered.empty():
            lines.extend(self._settle(self._answered.get()))
        return lines

    def abort(self) -> None:
        """Drop what is unanswered."""
        self._model.engine.abort(attempt.request_id for attempt in self._attempts.values())

    def _send(self, attempt: _Attempt) -> None:
        try:
            future = self._ask(attempt)
        except ModelError as error:
            self._failed.append(self._error(attempt, error.code, str(error)))
            return
        self._attempts[future] = attempt
        future.add_done_callback(self._answered.put)

    def _ask(self, attempt: _Attempt) -> "Future[Finished]":
        turns = [{"role": turn.role, "content": turn.content} for turn in attempt.dialogue.messages]
        prompt = self._model.chat.encode(turns)
        params = sampling_params(
            attempt.dialogue.sampling.over(self._spec.sampling).over(self._model.defaults),
            default_max_tokens=self._settings.max_tokens,
            # A prompt that fills the context leaves no room: the engine says so in its own words.
            room=max(1, self._model.max_model_len - len(prompt)),
        )
        return self._model.engine.submit(attempt.request_id, prompt, params)

    def _settle(self, future: "Future[Finished]") -> Iterator[ResultLine]:
        """The line of an answered future; nothing where it goes to the next engine."""
        attempt = self._attempts.pop(future)
        error = future.exception()
        if error is None:
            yield self._success(attempt, future.result())
        elif isinstance(error, RequestRefusedError):
            yield self._error(attempt, error.code, str(error))
        elif isinstance(error, EngineDiedError) and attempt.deaths + 1 < self._settings.max_attempts:
            self._send(_Attempt(attempt.dialogue, attempt.request_id, attempt.deaths + 1))
        elif isinstance(error, EngineDiedError):
            reason = f"{error}, as did {attempt.deaths} engines before it"
            yield self._error(attempt, dialogue.ENGINE_ERROR, reason)
        else:
            raise error

    def _success(self, attempt: _Attempt, finished: Finished) -> ResultLine:
        raw = whole_characters(finished.text) if finished.finish_reason == "length" else finished.text
        text = answer(raw, self._settings.end_markers, trim=self._settings.trim)
        output = dialogue.success_line(
            self._spec.id,
            attempt.dialogue,
            model=self._model.name,
            text=text,
            finish_reason=finished.finish_reason,
            prompt_tokens=finished.prompt_tokens,
            completion_tokens=finished.completion_tokens,
            cached_tokens=finished.cached_tokens,
            created=int(time.time()),
            logprobs=_logprobs(finished.logprobs, self._model.chat),
        )
        return ResultLine(number=attempt.dialogue.line, output=output, engine_seconds=finished.engine_seconds)

    def _error(self, attempt: _Attempt, code: str, message: str) -> ResultLine:
        line = attempt.dialogue
        log.warning("line failed", line=line.line, code=code, reason=message)
        return ResultLine(
            number=line.line,
            output=dialogue.error_line(self._spec.id, line.line, line.custom_id, code, message),
        )


class _TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class _TokenLogprob(_TopLogprob):
    top_logprobs: list[_TopLogprob]


def _logprobs(records: tuple[TokenLogprob, ...] | None, chat: Chat) -> dict[str, list[_TokenLogprob]] | None:
    """OpenAI's form: https://platform.openai.com/docs/api-reference/chat/object, `choices.logprobs`."""
    if records is None:
        return None

    def named(token_id: int, logprob: float) -> tuple[str, float, list[int]]:
        token = chat.tokenizer.decode([token_id], skip_control=False)
        return token, logprob, list(token.encode())

    return {
        "content": [
            _TokenLogprob(
                *named(record.token_id, record.logprob),
                [_TopLogprob(*named(token_id, logprob)) for token_id, logprob in record.top],
            )
            for record in records
        ]
    }
