"""One line in, one line out: the formats, their validation, the error codes.

Owns what a line means. Never reads files, knows no job and no engine.
"""

from operator import attrgetter

import msgspec

from jobs import wire
from jobs.errors import LineError

INVALID_JSON = "invalid_json"
INVALID_REQUEST = "invalid_request"
LINE_TOO_LARGE = "line_too_large"
DUPLICATE_CUSTOM_ID = "duplicate_custom_id"
CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
ENGINE_ERROR = "engine_error"
DEADLINE_EXCEEDED = "deadline_exceeded"
CANCELLED = "cancelled"

#: Where a prompt template takes the user's text.
PLACEHOLDER = "{text}"

_ENDPOINT = "/v1/chat/completions"
_BOM = b"\xef\xbb\xbf"
_MESSAGE_CHARS = 300


class Sampling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How to choose tokens; `None` leaves a choice to the next in line: line, job, model."""

    max_tokens: wire.MaxTokens | None = None
    #: Tokens before which nothing ends the answer.
    min_tokens: wire.MinTokens | None = None
    #: 0 is greedy.
    temperature: wire.Temperature | None = None
    #: 0 is off.
    top_k: wire.TopK | None = None
    top_p: wire.TopP | None = None
    #: 0 is off.
    min_p: wire.MinP | None = None
    #: 1 is off.
    repetition_penalty: wire.RepetitionPenalty | None = None
    #: 0 is off.
    presence_penalty: wire.Penalty | None = None
    #: 0 is off.
    frequency_penalty: wire.Penalty | None = None
    seed: wire.Seed | None = None
    stop: wire.StopStrings | None = None
    stop_token_ids: wire.TokenIds | None = None
    ignore_eos: bool | None = None
    #: Alternatives to report per token; 0 reports the chosen token alone.
    logprobs: wire.TopLogprobs | None = None

    @property
    def contradiction(self) -> str | None:
        """What can not be at once, in one line."""
        if self.min_tokens is None or self.max_tokens is None or self.min_tokens <= self.max_tokens:
            return None
        return f"min_tokens {self.min_tokens} is over max_tokens {self.max_tokens}"

    def over(self, base: "Sampling") -> "Sampling":
        """Own choices first, `base`'s where there is none."""
        if self == _UNSET:
            return base
        return Sampling(
            **{
                name: getattr(base, name) if (own := getattr(self, name)) is None else own
                for name in self.__struct_fields__
            }
        )


_UNSET = Sampling()


class Message(msgspec.Struct, frozen=True):
    """One turn of a dialogue; the role is `system`, `user` or `assistant`."""

    role: str
    content: str


class Dialogue(msgspec.Struct, frozen=True):
    """One usable input line."""

    #: Number of the line in the job's input, counted from 1.
    line: int
    custom_id: str | None
    messages: tuple[Message, ...]
    sampling: Sampling

    def prepared(self, system: str | None, template: str | None) -> "Dialogue":
        """With the job's system message where it has none, and its last user message put in the template."""
        messages = list(self.messages)
        if template is not None:
            for place in range(len(messages) - 1, -1, -1):
                if messages[place].role == "user":
                    messages[place] = Message("user", template.replace(PLACEHOLDER, messages[place].content))
                    break
        if system is not None and all(message.role != "system" for message in messages):
            messages.insert(0, Message("system", system))
        return Dialogue(self.line, self.custom_id, tuple(messages), self.sampling)


_unsupported = attrgetter(*(name for name, _ in wire.NEUTRAL))
_NOTHING_ASKED = (None,) * len(wire.NEUTRAL)
_line_decoder: msgspec.json.Decoder[tuple[wire.Message, ...] | wire.Line] = msgspec.json.Decoder(
    tuple[wire.Message, ...] | wire.Line
)


def parse_line(raw: bytes, number: int, max_bytes: int) -> Dialogue:
    """Read one input line (its newline may be missing); `LineError` says what is wrong and where.

    A byte-order mark in front is ignored: every file of a job may begin with one.
    """
    if len(raw) > max_bytes and len(raw.rstrip(b"\r\n")) > max_bytes:
        raise too_large(max_bytes)
    line = _decoded(raw.removeprefix(_BOM))
    if isinstance(line, tuple):
        return Dialogue(number, None, _turns(line, "$"), _UNSET)
    if line.body is None and line.url is None and line.method is None:
        return Dialogue(number, line.custom_id, _plain_turns(line), _consistent(_sampling(line, "$"), "$"))
    body = _batch_body(line)
    sampling = _consistent(_sampling(body, "$.body").over(_sampling(line, "$")), "$.body")
    return Dialogue(number, line.custom_id, _turns(body.messages, "$.body.messages"), sampling)


def too_large(max_bytes: int) -> LineError:
    """The refusal of a line that may never have been held whole."""
    return LineError(LINE_TOO_LARGE, f"the line is over the limit of {max_bytes} bytes")


def _decoded(raw: bytes) -> tuple[wire.Message, ...] | wire.Line:
    try:
        if not raw.isascii():
            raw.decode()
        try:
            return _line_decoder.decode(raw)
        except msgspec.ValidationError as error:
            msgspec.json.decode(raw)  # what is no JSON further on is no JSON
            raise LineError(INVALID_REQUEST, _one_line(str(error))) from error
    except UnicodeDecodeError as error:
        raise LineError(INVALID_JSON, f"not UTF-8 at byte {error.start}") from error
    except msgspec.DecodeError as error:
        raise LineError(
            INVALID_JSON, _one_line(str(error)) if raw.strip() else "the line is empty"
        ) from error
    except RecursionError as error:
        raise LineError(INVALID_JSON, "nested too deeply") from error


def _plain_turns(line: wire.Line) -> tuple[Message, ...]:
    if line.prompt is None:
        return _turns(line.messages, "$.messages")
    if line.messages is not None:
        raise LineError(INVALID_REQUEST, "both `messages` and `prompt` - at `$.prompt`")
    return (Message("user", line.prompt),)


def _batch_body(line: wire.Line) -> wire.Body:
    if line.method not in (None, "POST"):
        raise LineError(INVALID_REQUEST, _one_line(f"method {line.method!r} is not POST - at `$.method`"))
    if line.url not in (None, _ENDPOINT):
        raise LineError(INVALID_REQUEST, _one_line(f"url {line.url!r} is not {_ENDPOINT} - at `$.url`"))
    if line.body is None:
        raise LineError(INVALID_REQUEST, "a batch line without `body` - at `$.body`")
    if line.messages is not None or line.prompt is not None:
        raise LineError(INVALID_REQUEST, "`messages` or `prompt` beside `body` - at `$`")
    return line.body


def _turns(messages: tuple[wire.Message, ...] | None, where: str) -> tuple[Message, ...]:
    if not messages:
        raise LineError(INVALID_REQUEST, f"no messages - at `{where}`")
    turns: list[Message] = []
    for message in messages:
        if message.tool_calls or message.function_call:
            raise LineError(INVALID_REQUEST, f"tool calls are not supported - at `{where}[{len(turns)}]`")
        role = "system" if message.role == "developer" else message.role
        content = message.content
        turns.append(Message(role, content if isinstance(content, str) else "".join(p.text for p in content)))
    return tuple(turns)


def _sampling(body: wire.Body, where: str) -> Sampling:
    asked = _unsupported(body)
    if asked != _NOTHING_ASKED:
        for value, (name, neutral) in zip(asked, wire.NEUTRAL, strict=True):
            if value is not None and value not in neutral:
                raise LineError(INVALID_REQUEST, f"`{name}` is not supported - at `{where}.{name}`")
    stop = body.stop
    sampling = Sampling(
        max_tokens=body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens,
        min_tokens=body.min_tokens,
        temperature=body.temperature,
        top_k=body.top_k,
        top_p=body.top_p,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        seed=body.seed,
        stop=(stop,) if isinstance(stop, str) else stop,
        stop_token_ids=body.stop_token_ids,
        ignore_eos=body.ignore_eos,
        logprobs=_logprobs(body, where),
    )
    return _UNSET if sampling == _UNSET else sampling


def _consistent(sampling: Sampling, where: str) -> Sampling:
    if contradiction := sampling.contradiction:
        raise LineError(INVALID_REQUEST, f"{contradiction} - at `{where}.min_tokens`")
    return sampling


def _logprobs(body: wire.Body, where: str) -> int | None:
    """OpenAI's pair of a switch and a number as one number; a number alone is the older form."""
    if not isinstance(body.logprobs, bool) and body.logprobs is not None:
        return body.logprobs
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs is not None:
        raise LineError(INVALID_REQUEST, f"`top_logprobs` needs `logprobs`: true - at `{where}.top_logprobs`")
    return None


def custom_id_of(raw: bytes) -> str | None:
    """The `custom_id` of a line that may be unusable otherwise, so that its error can carry it."""
    try:
        named = _named_decoder.decode(raw.removeprefix(_BOM))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return named.custom_id


class Outcome(msgspec.Struct, frozen=True):
    """What an output line says to those who count."""

    succeeded: bool
    prompt_tokens: int
    completion_tokens: int


_named_decoder = msgspec.json.Decoder(wire.Named)
_output_decoder = msgspec.json.Decoder(wire.Output)
_encode = msgspec.json.Encoder().encode


def success_line(
    job_id: str,
    dialogue: Dialogue,
    *,
    model: str,
    text: str,
    finish_reason: str,
    prompt_tokens: int,
    completion_tokens: int,
    cached_tokens: int = 0,
    created: int,
    logprobs: object = None,
) -> bytes:
    """The output line of an answered dialogue, without a newline: OpenAI's batch line.

    `created` is Unix time in seconds; `logprobs` is put into the choice as it is.
    """
    name = f"{job_id}-{dialogue.line}"
    usage = wire.Usage(
        prompt_tokens, completion_tokens, prompt_tokens + completion_tokens, {"cached_tokens": cached_tokens}
    )
    choice = wire.Choice(0, wire.Answer("assistant", _encodable(text)), logprobs, finish_reason)
    body = wire.Completion(f"chatcmpl-{name}", "chat.completion", created, model, (choice,), usage)
    return _encode(wire.Output(name, dialogue.custom_id, wire.Response(200, f"req-{name}", body), None))


def error_line(job_id: str, number: int, custom_id: str | None, code: str, message: str) -> bytes:
    """The output line of an input line without an answer, without a newline."""
    failure = wire.Failure(code, _encodable(message))
    return _encode(wire.Output(f"{job_id}-{number}", custom_id, None, failure))


def outcome(line: bytes) -> Outcome:
    """Read an output line back; `LineError` where it is none."""
    try:
        response = _output_decoder.decode(line).response
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LineError(INVALID_JSON, f"not an output line: {_one_line(str(error))}") from error
    if response is None:
        return Outcome(False, 0, 0)
    usage = response.body.usage
    return Outcome(True, usage.prompt_tokens, usage.completion_tokens)


def _encodable(text: str) -> str:
    """Without lone surrogates, which no JSON text can carry."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _MESSAGE_CHARS else f"{text[: _MESSAGE_CHARS - 1]}…"
