"""Dialogues → result lines: encoding, the engine, post-processing, and what becomes of lines that fail.

Owns the way of a line between its validation and its checkpoint. Knows neither ledger nor store.
"""

import queue
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Protocol

import msgspec
import structlog

from jobs import dialogue
from jobs.dialogue import Dialogue, Sampling
from jobs.records import JobSpec
from jobs.settings import Settings
from model.errors import ModelError
from model.request import SamplingParams, TokenLogprob
from worker.engine_host import Answer, Blamed, EngineHost
from worker.metrics import SUCCEEDED
from worker.postprocess import answer, whole_characters
from worker.protocol import Finished, Generate, Refused
from worker.sampling import NO_LIMIT, sampling_params

log = structlog.get_logger(__name__)

#: How long to wait for an answer before the caller gets to look at its lease.
_TICK_SECONDS = 0.25
#: Lines that are encoded before the engine gets them.
_AT_ONCE = 64


class Template(Protocol):
    """Turns to tokens: a checkpoint's `model.chat.Chat`, or the echo engine's."""

    def encode(self, messages: Sequence[Mapping[str, str]], /) -> list[int]:
        """The prompt's ids."""
        ...

    def token_text(self, token_id: int, /) -> str:
        """What one token stands for."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The engine and all that is known of its model: what the shards of a worker share."""

    name: str
    engine: EngineHost
    chat: Template
    max_model_len: int
    #: What the checkpoint's generation_config.json asks for.
    defaults: Sampling
    versions: dict[str, str]
    #: See `worker.identity`.
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultLine:
    """One finished line."""

    number: int
    output: bytes
    #: "succeeded", or the code of its error.
    outcome: str
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    engine_seconds: float = 0.0
    #: Engine seconds that died with engines while the line was in them.
    lost_seconds: float = 0.0


class Flight:
    """The lines of one shard in the engine; leaving the context drops what is unanswered."""

    def __init__(self, model: Model, settings: Settings, spec: JobSpec, prefix: str) -> None:
        """`prefix` makes the requests' ids unique in the engine."""
        self._model = model
        self._settings = settings
        self._spec = spec
        self._prefix = prefix
        self._unanswered: dict[str, Dialogue] = {}
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        #: Lines that failed on their way in.
        self._failed: list[ResultLine] = []
        #: By what lines ask for: most ask for the same.
        self._params: dict[Sampling, SamplingParams] = {}

    def __enter__(self) -> "Flight":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._model.engine.abort(tuple(self._unanswered))

    @property
    def spent_seconds(self) -> float:
        """Engine seconds that the unanswered lines have cost so far."""
        return self._model.engine.spent(tuple(self._unanswered))

    def results(self, dialogues: Iterable[Dialogue]) -> Iterator[list[ResultLine]]:
        """Results as they come, at least an empty list every quarter of a second."""
        lines = iter(dialogues)
        while chunk := list(islice(lines, _AT_ONCE)):
            self._send(chunk)
            yield self._settled(wait=0)
        while self._unanswered or self._failed:
            yield self._settled(wait=_TICK_SECONDS)

    def _send(self, lines: Sequence[Dialogue]) -> None:
        requests = []
        for line in lines:
            try:
                request = self._request(line)
            except ModelError as error:
                self._failed.append(self._error(line, error.code, str(error)))
            else:
                requests.append(request)
                self._unanswered[request.id] = line
        if requests:
            self._model.engine.submit(requests, self._answers.put)

    def _request(self, line: Dialogue) -> Generate:
        prepared = line.prepared(self._spec.system, self._spec.prompt_template)
        turns = [{"role": turn.role, "content": turn.content} for turn in prepared.messages]
        prompt = self._model.chat.encode(turns)
        # A prompt that fills the context leaves no room: the engine says so in its own words.
        room = max(1, self._model.max_model_len - len(prompt))
        return Generate(
            f"{self._prefix}/{line.line}", tuple(prompt), self._sampling_params(line.sampling, room)
        )

    def _sampling_params(self, asked: Sampling, room: int) -> SamplingParams:
        known = self._params.get(asked)
        if known is None:
            known = self._params[asked] = self._merged(asked, NO_LIMIT)
        return known if known.max_tokens <= room else self._merged(asked, room)

    def _merged(self, asked: Sampling, room: int) -> SamplingParams:
        sampling = asked.over(self._spec.sampling).over(self._model.defaults)
        return sampling_params(sampling, default_max_tokens=self._settings.max_tokens, room=room)

    def _settled(self, wait: float) -> list[ResultLine]:
        """Lines that are finished, waiting up to `wait` seconds for the first of them."""
        lines, self._failed = self._failed, []
        if wait and not lines:
            try:
                lines.append(self._line(self._answers.get(timeout=wait)))
            except queue.Empty:
                return []
        while not self._answers.empty():
            lines.append(self._line(self._answers.get()))
        return lines

    def _line(self, found: Answer) -> ResultLine:
        line = self._unanswered.pop(found.id)
        match found.result:
            case Finished() as finished:
                return self._success(line, finished, found.lost_seconds)
            case Refused() as refused:
                return self._error(line, refused.code, refused.message, found.lost_seconds)
            case Blamed() as blamed:
                return self._error(line, dialogue.ENGINE_ERROR, blamed.reason, found.lost_seconds)

    def _success(self, line: Dialogue, finished: Finished, lost_seconds: float) -> ResultLine:
        raw = whole_characters(finished.text) if finished.finish_reason == "length" else finished.text
        text = answer(raw, self._settings.end_markers, trim=self._settings.trim)
        output = dialogue.success_line(
            self._spec.id,
            line,
            model=self._model.name,
            text=text,
            finish_reason=finished.finish_reason,
            prompt_tokens=finished.prompt_tokens,
            completion_tokens=finished.completion_tokens,
            cached_tokens=finished.cached_tokens,
            created=int(time.time()),
            logprobs=_logprobs(finished.logprobs, self._model.chat),
        )
        if self._settings.log_text:
            log.info("line answered", line=line.line, text=text)
        return ResultLine(
            number=line.line,
            output=output,
            outcome=SUCCEEDED,
            prompt_tokens=finished.prompt_tokens,
            cached_tokens=finished.cached_tokens,
            completion_tokens=finished.completion_tokens,
            engine_seconds=finished.engine_seconds,
            lost_seconds=lost_seconds,
        )

    def _error(self, line: Dialogue, code: str, message: str, lost_seconds: float = 0.0) -> ResultLine:
        log.warning("line failed", line=line.line, code=code, reason=message)
        return ResultLine(
            number=line.line,
            output=dialogue.error_line(self._spec.id, line.line, line.custom_id, code, message),
            outcome=code,
            lost_seconds=lost_seconds,
        )


class _TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class _TokenLogprob(_TopLogprob):
    top_logprobs: list[_TopLogprob]


def _logprobs(
    records: tuple[TokenLogprob, ...] | None, chat: Template
) -> dict[str, list[_TokenLogprob]] | None:
    """OpenAI's form: https://platform.openai.com/docs/api-reference/chat/object, `choices.logprobs`."""
    if records is None:
        return None

    def named(token_id: int, logprob: float) -> tuple[str, float, list[int]]:
        token = chat.token_text(token_id)
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
