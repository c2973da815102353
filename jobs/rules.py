"""Why a line that has the right shape is refused all the same: what it leaves out, combines or asks for.

Owns these rules and their words. The shape is `jobs.wire`'s, the code and the reading are `jobs.dialogue`'s.
Every function answers with the reason and its place, or with None where there is nothing to refuse.
"""

from operator import attrgetter

import msgspec

from jobs import wire

ENDPOINT = "/v1/chat/completions"

_asked_for = attrgetter(*(name for name, _ in wire.NEUTRAL))
_NOTHING = (wire.UNASKED,) * len(wire.NEUTRAL)
_UNCALLED = (wire.UNASKED, wire.UNASKED)
_NO_CALLS: tuple[object, ...] = ([], {}, "", 0)
#: What is longer asks for something, and is not read.
_NEUTRAL_BYTES = 256


def refusal(line: tuple[wire.Message, ...] | wire.Line) -> str | None:
    """The first reason against a line."""
    if isinstance(line, tuple):
        return _of_messages(line, "$")
    if line.body is None and line.url is None and line.method is None:
        return _of_request(line)
    return _of_batch_line(line)


def contradiction(min_tokens: int | None, max_tokens: int | None) -> str | None:
    """What can not be at once."""
    if min_tokens is None or max_tokens is None or min_tokens <= max_tokens:
        return None
    return f"min_tokens {min_tokens} is over max_tokens {max_tokens}"


def most_tokens(body: wire.Body) -> int | None:
    """The limit by OpenAI's newer name where it is there, else by the older one."""
    return body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens


def _of_request(line: wire.Line) -> str | None:
    if line.prompt is None:
        why = _of_messages(line.messages, "$.messages")
    else:
        why = None if line.messages is None else "both `messages` and `prompt` - at `$.prompt`"
    return why or _of_wishes(line, "$") or _of_lengths(line.min_tokens, most_tokens(line), "$")


def _of_batch_line(line: wire.Line) -> str | None:
    body = line.body
    if line.method not in (None, "POST"):
        return f"method {line.method!r} is not POST - at `$.method`"
    if line.url not in (None, ENDPOINT):
        return f"url {line.url!r} is not {ENDPOINT} - at `$.url`"
    if body is None:
        return "a batch line without `body` - at `$.body`"
    if line.messages is not None or line.prompt is not None:
        return "`messages` or `prompt` beside `body` - at `$`"
    least = line.min_tokens if body.min_tokens is None else body.min_tokens
    most = most_tokens(line) if (own := most_tokens(body)) is None else own
    return (
        _of_wishes(body, "$.body")
        or _of_wishes(line, "$")
        or _of_lengths(least, most, "$.body")
        or _of_messages(body.messages, "$.body.messages")
    )


def _of_messages(messages: tuple[wire.Message, ...] | None, where: str) -> str | None:
    if not messages:
        return f"no messages - at `{where}`"
    for message in messages:
        calls = message.tool_calls, message.function_call
        if calls != _UNCALLED and not all(_asks_nothing(each, _NO_CALLS) for each in calls):
            place = next(n for n, each in enumerate(messages) if each is message)
            return f"tool calls are not supported - at `{where}[{place}]`"
    return None


def _of_wishes(body: wire.Body, where: str) -> str | None:
    asked = _asked_for(body)
    if asked != _NOTHING:
        for value, (name, neutral) in zip(asked, wire.NEUTRAL, strict=True):
            if not _asks_nothing(value, neutral):
                return f"`{name}` is not supported - at `{where}.{name}`"
    if body.top_logprobs is not None and (body.logprobs is None or body.logprobs is False):
        return f"`top_logprobs` needs `logprobs`: true - at `{where}.top_logprobs`"
    return None


def _of_lengths(min_tokens: int | None, max_tokens: int | None, where: str) -> str | None:
    why = contradiction(min_tokens, max_tokens)
    return why and f"{why} - at `{where}.min_tokens`"


def _asks_nothing(value: msgspec.Raw, neutral: tuple[object, ...]) -> bool:
    """Whether it is null or one of these."""
    if len(value) > _NEUTRAL_BYTES:
        return False
    try:
        read = msgspec.json.decode(value)
    except msgspec.DecodeError:  # a number out of msgspec's range
        return False
    return read is None or read in neutral
