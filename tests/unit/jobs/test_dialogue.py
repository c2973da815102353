"""Lines in and out: each format, each refusal with its place, and that nothing else is ever raised."""

import json
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.dialogue import (
    Dialogue,
    Message,
    Outcome,
    Sampling,
    check_line,
    custom_id_of,
    error_line,
    outcome,
    parse_line,
    success_line,
)
from jobs.errors import LineError
from tests.line_strategies import raw_lines

LIMIT = 1024 * 1024
USER = {"role": "user", "content": "Summarize: 你好"}


def parsed(value: object, number: int = 1) -> Dialogue:
    return parse_line(json.dumps(value, ensure_ascii=False).encode(), number, LIMIT)


def refusal(raw: bytes, limit: int = LIMIT) -> tuple[str, str]:
    with pytest.raises(LineError) as caught:
        parse_line(raw, 1, limit)
    assert "\n" not in caught.value.message
    return caught.value.code, caught.value.message


def test_a_list_of_messages_is_a_dialogue() -> None:
    dialogue = parsed([{"role": "system", "content": "S"}, USER], number=7)
    assert dialogue == Dialogue(
        7, None, (Message("system", "S"), Message("user", USER["content"])), Sampling()
    )


def test_an_object_carries_its_id_and_its_sampling() -> None:
    dialogue = parsed(
        {
            "custom_id": "a-1",
            "messages": [USER],
            "max_tokens": 5,
            "min_tokens": 5,
            "temperature": 0,
            "top_k": 3,
            "top_p": 0.5,
            "min_p": 0.1,
            "repetition_penalty": 1.1,
            "presence_penalty": -2,
            "frequency_penalty": 0.5,
            "seed": -1,
            "stop": ["\n", "。"],
            "stop_token_ids": [2, 92542],
            "ignore_eos": True,
            "logprobs": 2,
        }
    )
    assert dialogue.custom_id == "a-1"
    assert dialogue.sampling == Sampling(
        max_tokens=5,
        min_tokens=5,
        temperature=0.0,
        top_k=3,
        top_p=0.5,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=-2.0,
        frequency_penalty=0.5,
        seed=-1,
        stop=("\n", "。"),
        stop_token_ids=(2, 92542),
        ignore_eos=True,
        logprobs=2,
    )


def test_an_openai_batch_line_is_its_body() -> None:
    dialogue = parsed(
        {
            "custom_id": "r",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": "any",
                "user": "u",
                "metadata": {"k": "v"},
                "store": False,
                "service_tier": "auto",
                "n": 1,
                "stream": False,
                "tools": [],
                "response_format": {"type": "text"},
                "best_of": 1,
                "logit_bias": {},
                "messages": [{"role": "developer", "content": "D"}, USER],
                "max_tokens": 9,
                "max_completion_tokens": 4,
                "stop": "END",
                "logprobs": True,
                "top_logprobs": 3,
            },
        }
    )
    assert dialogue.messages == (Message("system", "D"), Message("user", USER["content"]))
    assert dialogue.sampling == Sampling(max_tokens=4, stop=("END",), logprobs=3)


def test_a_prompt_is_one_user_message() -> None:
    assert parsed({"custom_id": "p", "prompt": "text"}).messages == (Message("user", "text"),)


def test_text_parts_are_joined() -> None:
    content = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    assert parsed([{"role": "user", "content": content}]).messages == (Message("user", "one two"),)


def test_logprobs_true_alone_asks_for_the_chosen_token() -> None:
    assert parsed({"prompt": "x", "logprobs": True}).sampling.logprobs == 0
    assert parsed({"prompt": "x", "logprobs": False}).sampling.logprobs is None


def test_an_older_number_of_logprobs_stands_beside_top_logprobs() -> None:
    assert parsed({"prompt": "x", "logprobs": 0, "top_logprobs": 2}).sampling.logprobs == 0


def test_line_ends_byte_order_mark_and_nul_are_tolerated() -> None:
    raw = b'\xef\xbb\xbf{"custom_id":"b","prompt":"a\\u0000b"}\r\n'
    assert parse_line(raw, 1, LIMIT).messages == (Message("user", "a\0b"),)
    assert custom_id_of(raw) == "b"


def test_the_limit_counts_the_line_without_its_end() -> None:
    raw = b'{"prompt":"x"}'
    assert parse_line(raw + b"\r\n", 1, len(raw)).line == 1
    assert refusal(raw, len(raw) - 1)[0] == "line_too_large"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\n",
        b" \r\n",
        b"{",
        b"not json",
        b'{"prompt":"x"} trailing',
        b'{"prompt":"\xff"}',
        b'{"prompt":"x","user":"\xc3("}',
        b'{"prompt":"\\ud800"}',
        b'{"prompt":"a\x00b"}',
        b'{"temperature":NaN,"prompt":"x"}',
        b'{"max_tokens":0,"prompt":',
        b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_what_is_no_json_text_is_invalid_json(raw: bytes) -> None:
    assert refusal(raw)[0] == "invalid_json"


def test_an_empty_line_is_named_as_such() -> None:
    assert refusal(b"\r\n") == ("invalid_json", "the line is empty")


def test_an_unusable_line_still_names_its_custom_id() -> None:
    assert custom_id_of(b'{"custom_id":"a","messages":[{"role":"robot"}]}') == "a"
    assert custom_id_of(b'{"custom_id":4}') is None
    assert custom_id_of(b"[1]") is None
    assert custom_id_of(b'{"custom_id":"a"') is None


def test_over_prefers_its_own_choices() -> None:
    base = Sampling(max_tokens=5, temperature=1.0, ignore_eos=True)
    assert Sampling(temperature=0.0, ignore_eos=False).over(base) == Sampling(
        max_tokens=5, temperature=0.0, ignore_eos=False
    )
    assert Sampling().over(base) == base


def test_prepared_adds_a_system_message_only_where_there_is_none() -> None:
    assert parsed({"prompt": "x"}).prepared("S", None).messages[0] == Message("system", "S")
    own = parsed([{"role": "system", "content": "own"}, USER])
    assert own.prepared("S", None) == own


def test_prepared_puts_the_last_user_message_in_the_template_literally() -> None:
    turns = [USER, {"role": "assistant", "content": "a"}, {"role": "user", "content": "{x} {text} %s"}]
    messages = parsed(turns).prepared(None, "Sum {y}: {text}!").messages
    assert messages[2] == Message("user", "Sum {y}: {x} {text} %s!")
    assert messages[0].content == USER["content"]


def test_a_success_line_is_openais_batch_line() -> None:
    line = success_line(
        "job-1",
        parsed({"custom_id": "c", "prompt": "x"}, number=3),
        model="m",
        text="答案\n",
        finish_reason="stop",
        prompt_tokens=11,
        completion_tokens=4,
        cached_tokens=8,
        created=1700000000,
    )
    assert b"\n" not in line
    read = json.loads(line)
    assert (read["id"], read["custom_id"], read["error"]) == ("job-1-3", "c", None)
    assert read["response"]["status_code"] == 200
    body = read["response"]["body"]
    assert body["object"] == "chat.completion"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "答案\n"},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert body["usage"] == {
        "prompt_tokens": 11,
        "completion_tokens": 4,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 8},
    }
    assert outcome(line) == Outcome(True, 11, 4)


def test_an_error_line_has_no_response() -> None:
    line = error_line("job-1", 9, None, "invalid_json", "bad\nthing")
    assert json.loads(line) == {
        "id": "job-1-9",
        "custom_id": None,
        "response": None,
        "error": {"code": "invalid_json", "message": "bad\nthing"},
    }
    assert outcome(line) == Outcome(False, 0, 0)


def test_a_lone_surrogate_does_not_get_into_the_output() -> None:
    assert json.loads(error_line("j", 1, None, "engine_error", "a\udc80b"))["error"]["message"] == "a?b"


def test_an_output_line_that_is_none_is_refused() -> None:
    for raw in (b"", b"{}", b"[]", b'{"response":{}}', b"\xff"):
        with pytest.raises(LineError):
            outcome(raw)


def code_of(raw: bytes) -> str | None:
    try:
        parse_line(raw, 1, LIMIT)
    except LineError as error:
        return error.code
    return None


@given(st.binary(max_size=200))
def test_any_bytes_parse_or_raise_a_line_error(raw: bytes) -> None:
    assert code_of(raw) in {None, "invalid_json", "invalid_request"}


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
_fields = st.sampled_from(
    [*Sampling.__struct_fields__, "messages", "prompt", "body", "url", "custom_id", "n"]
)


@given(st.dictionaries(_fields, _json | st.just([USER]), max_size=6))
def test_any_values_in_known_fields_parse_or_raise_a_line_error(value: dict[str, object]) -> None:
    assert code_of(msgspec.json.encode(value)) in {None, "invalid_json", "invalid_request"}


def told(read: Callable[[], str | None]) -> tuple[str | None, ...]:
    """The id of a usable line, or how it is refused."""
    try:
        return (read(),)
    except LineError as error:
        return error.code, error.message


@given(raw_lines, st.sampled_from([LIMIT, 60]))
def test_checking_a_line_says_what_parsing_it_says(raw: bytes, limit: int) -> None:
    parsed = told(lambda: parse_line(raw, 1, limit).custom_id)
    assert told(lambda: check_line(raw, limit)) == parsed


_text = st.text(st.characters(exclude_categories=["Cs"]))
_turn = st.builds(Message, st.sampled_from(["system", "user", "assistant"]), _text)


@given(st.lists(_turn, min_size=1, max_size=5), st.none() | _text.filter(lambda text: len(text) < 500))
def test_what_a_dialogue_says_comes_back(turns: list[Message], custom_id: str | None) -> None:
    dialogue = parse_line(msgspec.json.encode({"messages": turns, "custom_id": custom_id}), 2, LIMIT)
    assert dialogue == Dialogue(2, custom_id, tuple(turns), Sampling())


@given(st.text(st.characters() | st.just("\ud800")), st.integers(0, 10**9), st.integers(0, 10**9))
def test_any_answer_becomes_a_line_that_reads_back(text: str, prompt: int, completion: int) -> None:
    line = success_line(
        "j",
        Dialogue(1, None, (), Sampling()),
        model="m",
        text=text,
        finish_reason="length",
        prompt_tokens=prompt,
        completion_tokens=completion,
        created=0,
    )
    assert outcome(line) == Outcome(True, prompt, completion)
    answer = json.loads(line)["response"]["body"]["choices"][0]["message"]["content"]
    assert answer == text.encode("utf-8", "replace").decode()
