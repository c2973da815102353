"""One line in, one line out: the formats, their validation, the error codes.

Owns what a line means. Never reads files, knows no job and no engine.
"""

import msgspec

from jobs import wire
from jobs.errors import LineError
from jobs.rules import contradiction, most_tokens, refusal

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
        return contradiction(self.min_tokens, self.max_tokens)

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


_line_decoder: msgspec.json.Decoder[tuple[wire.Message, ...] | wire.Line] = msgspec.json.Decoder(
    tuple[wire.Message, ...] | wire.Line
)
#: Reads all and builds nothing.
_json_decoder = msgspec.json.Decoder(msgspec.Raw)


def parse_line(raw: bytes, number: int, max_bytes: int) -> Dialogue:
    """Read one input line (its newline may be missing); `LineError` says what is wrong and where.

    A byte-order mark in front is ignored: every file of a job may begin with one.
    """
    line = _usable(raw, max_bytes)
    if isinstance(line, tuple):
        return Dialogue(number, None, _turns(line), _UNSET)
    if line.body is None:
        turns = (Message("user", line.prompt),) if line.prompt is not None else _turns(line.messages)
        return Dialogue(number, line.custom_id, turns, _sampling(line))
    sampling = _sampling(line.body).over(_sampling(line))
    return Dialogue(number, line.custom_id, _turns(line.body.messages), sampling)


def check_line(raw: bytes, max_bytes: int) -> str | None:
    """The `custom_id` of a usable line; `LineError` where `parse_line` has one, and the same.

    Builds no dialogue, which is half of the work of reading a line.
    """
    line = _usable(raw, max_bytes)
    return None if isinstance(line, tuple) else line.custom_id


def too_large(max_bytes: int) -> LineError:
    """The refusal of a line that may never have been held whole."""
    return LineError(LINE_TOO_LARGE, f"the line is over the limit of {max_bytes} bytes")


def _usable(raw: bytes, max_bytes: int) -> tuple[wire.Message, ...] | wire.Line:
    """The line as it was written, once nothing is left to refuse."""
    if len(raw) > max_bytes and len(raw.rstrip(b"\r\n")) > max_bytes:
        raise too_large(max_bytes)
    line = _decoded(raw.removeprefix(_BOM))
    if why := refusal(line):
        raise LineError(INVALID_REQUEST, _one_line(why))
    return line


def _decoded(raw: bytes) -> tuple[wire.Message, ...] | wire.Line:
    try:
        if not raw.isascii():
            raw.decode()
        try:
            return _line_decoder.decode(raw)
        except msgspec.ValidationError as error:
            _json_decoder.decode(raw)  # what is no JSON further on is no JSON
            raise LineError(INVALID_REQUEST, _one_line(str(error))) from error
    except UnicodeDecodeError as error:
        raise LineError(INVALID_JSON, f"not UTF-8 at byte {error.start}") from error
    except msgspec.DecodeError as error:
        raise LineError(
            INVALID_JSON, _one_line(str(error)) if raw.strip() else "the line is empty"
        ) from error
    except RecursionError as error:
        raise LineError(INVALID_JSON, "nested too deeply") from error


def _turns(messages: tuple[wire.Message, ...] | None) -> tuple[Message, ...]:
    return tuple(
        Message("system" if message.role == "developer" else message.role, _text(message.content))
        for message in messages or ()
    )


def _text(content: str | tuple[wire.Part, ...]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _sampling(body: wire.Body) -> Sampling:
    stop = body.stop
    sampling = Sampling(
        max_tokens=most_tokens(body),
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
        logprobs=_logprobs(body),
    )
    return _UNSET if sampling == _UNSET else sampling


def _logprobs(body: wire.Body) -> int | None:
    """OpenAI's pair of a switch and a number as one number; a number alone is the older form."""
    if isinstance(body.logprobs, bool):
        return (body.top_logprobs or 0) if body.logprobs else None
    return body.logprobs


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
