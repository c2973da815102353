"""JSON that is no request: each refusal says what is wrong and where, in one short line."""

import json
import tracemalloc

import pytest

from jobs.dialogue import parse_line
from jobs.errors import LineError

USER = {"role": "user", "content": "Summarize: 你好"}


def refused(value: object) -> str:
    with pytest.raises(LineError) as caught:
        parse_line(json.dumps(value).encode(), 1, 1024 * 1024)
    assert caught.value.code == "invalid_request"
    assert "\n" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ("text", "got `str`"),
        (7, "got `int`"),
        ([], "`$`"),
        ({}, "`$.messages`"),
        ({"messages": []}, "`$.messages`"),
        ({"messages": None}, "`$.messages`"),
        ({"messages": "hello"}, "`$.messages`"),
        ([USER, 5], "`$[1]`"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "'robot' - at `$.messages[0].role`"),
        ({"messages": [USER, {"role": "tool", "content": "x"}]}, "`$.messages[1].role`"),
        ({"messages": [{"content": "x"}]}, "`role` - at `$.messages[0]`"),
        ({"messages": [{"role": "user"}]}, "`content` - at `$.messages[0]`"),
        ({"messages": [{"role": "user", "content": None}]}, "`$.messages[0].content`"),
        ({"messages": [{"role": "user", "content": 3}]}, "`$.messages[0].content`"),
        (
            [USER, {"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            "`$[1].content[0].type`",
        ),
        ([{"role": "assistant", "content": "", "tool_calls": [{}]}], "`$[0]`"),
        ({"prompt": 3}, "`$.prompt`"),
        ({"prompt": "x", "messages": [USER]}, "`$.prompt`"),
        ({"prompt": "x", "custom_id": 3}, "`$.custom_id`"),
        ({"prompt": "x", "custom_id": "i" * 513}, "`$.custom_id`"),
        ({"prompt": "x", "max_tokens": 0}, "`$.max_tokens`"),
        ({"prompt": "x", "max_tokens": -3}, "`$.max_tokens`"),
        ({"prompt": "x", "max_tokens": "5"}, "`$.max_tokens`"),
        ({"prompt": "x", "max_tokens": 10**30}, "`$.max_tokens`"),
        ({"prompt": "x", "temperature": 2.1}, "`$.temperature`"),
        ({"prompt": "x", "temperature": -1}, "`$.temperature`"),
        ({"prompt": "x", "top_p": 0}, "`$.top_p`"),
        ({"prompt": "x", "top_k": -1}, "`$.top_k`"),
        ({"prompt": "x", "min_tokens": -1}, "`$.min_tokens`"),
        ({"prompt": "x", "min_tokens": 5, "max_tokens": 4}, "min_tokens 5 is over max_tokens 4 - at `$.min"),
        ({"body": {"messages": [USER], "min_tokens": 5}, "max_tokens": 4}, "max_tokens 4 - at `$.body.min"),
        (
            {"body": {"messages": [USER], "max_completion_tokens": 4}, "min_tokens": 5},
            "max_tokens 4 - at `$.b",
        ),
        ({"prompt": "x", "logprobs": False, "top_logprobs": 2}, "`$.top_logprobs`"),
        ({"body": {"messages": [USER]}, "n": 2}, "`$.n`"),
        ({"body": {"messages": [{**USER, "function_call": {"name": "f"}}]}}, "`$.body.messages[0]`"),
        ({"prompt": "x", "min_p": 1.1}, "`$.min_p`"),
        ({"prompt": "x", "repetition_penalty": 0}, "`$.repetition_penalty`"),
        ({"prompt": "x", "repetition_penalty": "1"}, "`$.repetition_penalty`"),
        ({"prompt": "x", "presence_penalty": 2.1}, "`$.presence_penalty`"),
        ({"prompt": "x", "frequency_penalty": -2.1}, "`$.frequency_penalty`"),
        ({"prompt": "x", "seed": 2**63}, "`$.seed`"),
        ({"prompt": "x", "stop": ""}, "`$.stop`"),
        ({"prompt": "x", "stop": ["a", ""]}, "`$.stop[1]`"),
        ({"prompt": "x", "stop_token_ids": [-1]}, "`$.stop_token_ids[0]`"),
        ({"prompt": "x", "logprobs": 21}, "`$.logprobs`"),
        ({"prompt": "x", "top_logprobs": 2}, "`$.top_logprobs`"),
        ({"body": {"messages": [USER]}, "url": "/v1/embeddings"}, "`$.url`"),
        ({"body": {"messages": [USER]}, "method": "GET"}, "`$.method`"),
        ({"url": "/v1/chat/completions", "messages": [USER]}, "`$.body`"),
        ({"body": {"messages": [USER]}, "messages": [USER]}, "`$`"),
        ({"body": {"prompt": "x"}}, "`$.body.messages`"),
        ({"body": {"messages": [{"role": "x", "content": "x"}]}}, "`$.body.messages[0].role`"),
        ({"body": {"messages": [USER], "n": 2}}, "`$.body.n`"),
        ({"body": {"messages": [USER], "best_of": 2}}, "`$.body.best_of`"),
        ({"body": {"messages": [USER], "stream": True}}, "`$.body.stream`"),
        ({"body": {"messages": [USER], "tools": [{"type": "function"}]}}, "`$.body.tools`"),
        ({"body": {"messages": [USER], "functions": [{}]}}, "`$.body.functions`"),
        (
            {"body": {"messages": [USER], "response_format": {"type": "json_object"}}},
            "`$.body.response_format`",
        ),
        ({"prompt": "x", "logit_bias": {"5": 1}}, "`$.logit_bias`"),
        ({"prompt": "x", "n": 10**200}, "`$.n`"),
        ({"prompt": "x", "tools": ["x" * 1000]}, "`$.tools`"),
    ],
)
def test_a_wrong_request_says_where(value: object, place: str) -> None:
    assert place in refused(value)


def test_messages_stay_short_whatever_the_line_holds() -> None:
    assert len(refused({"messages": [{"role": "x" * 100_000, "content": ""}]})) <= 300
    assert len(refused({"url": "x\n" * 100_000})) <= 300


@pytest.mark.parametrize(
    "line",
    [
        '{"prompt": "x", "n": null, "stream": false, "tools": [ ], "response_format": {  "type" : "text" }}',
        '[{"role": "user", "content": "x", "tool_calls": null, "function_call": {}}]',
    ],
)
def test_who_asks_for_nothing_is_answered(line: str) -> None:
    assert parse_line(line.encode(), 1, 1024).messages[0].content == "x"


@pytest.mark.parametrize(
    ("before", "repeated", "after"),
    [
        ('{"prompt": "x", "tools": [', "[],", "0]}"),
        ('{"prompt": "x", "max_tokens": 0, "user": [', "{},", "0]}"),
        ('[{"role": "user", "content": "x", "tool_calls": [', "[],", "0]}]"),
        ('[{"role": "user", "content": [', "{},", "0]}]"),
        ("[", "[],", "0]"),
    ],
)
def test_refusing_a_line_takes_less_memory_than_the_line(before: str, repeated: str, after: str) -> None:
    raw = (before + repeated * 100_000 + after).encode()
    tracemalloc.start()
    try:
        with pytest.raises(LineError):
            parse_line(raw, 1, len(raw))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < len(raw)
