"""Input lines as Hypothesis draws them: usable, unusable, and bytes that are nearly one or the other."""

from collections.abc import Callable
from typing import Any

import msgspec
from hypothesis import strategies as st

#: For each field, values that are usable and values that are not, alone or beside others.
WISHES: dict[str, list[Any]] = {
    "max_tokens": [1, 5, 5, None, 0],
    "max_completion_tokens": [2, 8, 0],
    "min_tokens": [0, 3, 9, -1],
    "temperature": [0, 1.5, 2.5],
    "stop": ["x", ["a", "b"], ["a", ""]],
    "stop_token_ids": [[], [2], [-1]],
    "seed": [-1, 2**63],
    "logprobs": [True, False, None, 0, 3, 21],
    "top_logprobs": [0, 2],
    "n": [1, 1.0, True, 2],
    "stream": [False, 0, True],
    "tools": [[], [{}]],
    "response_format": [{"type": "text"}, {"type": "json_object"}],
    "logit_bias": [{}, {"5": 1}],
    "user": ["u", "中", 7],
}
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

Values = st.SearchStrategy[Any]


def _some(choices: dict[str, list[Any]]) -> Values:
    return st.fixed_dictionaries({}, optional={name: st.sampled_from(few) for name, few in choices.items()})


def _merged(*parts: Values) -> Values:
    return st.tuples(*parts).map(
        lambda found: {name: value for part in found for name, value in part.items()}
    )


_wishes: Values = st.just({}) | _some(WISHES)
_content = ["", "text", "你好\n", [{"type": "text", "text": "a"}], [], [{"type": "image"}], None]
_turn: Values = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "user", "system", "developer", "assistant", "assistant", "robot"]),
        "content": st.just("text") | st.sampled_from(_content),
    },
    optional={"tool_calls": st.sampled_from([None, [], [{}]]), "function_call": st.sampled_from([None, {}])},
)
_turns: Values = st.just([{"role": "user", "content": "Summarize: 你好"}]) | st.lists(_turn, max_size=3)
_named = _some({"custom_id": ["a", "b", "c", "d", "é\n\t", "x" * 512, "x" * 513, None, 3]})
_messages: Values = st.fixed_dictionaries({"messages": _turns})
_request = _merged(_named, _wishes, _messages | st.just({"prompt": "p"}))
_batch_line = _merged(
    _named,
    _wishes,
    st.fixed_dictionaries({"body": _merged(_wishes, _messages)}),
    _some({"method": ["POST", "POST", "GET"], "url": ["/v1/chat/completions", "/v1/embeddings"]}),
)
_mixed_up = _merged(
    _request | _batch_line,
    _some({"prompt": ["p", 3, None], "messages": [None, []], "body": [None, {}], "method": ["POST"]}),
)


@st.composite
def _disfigured(draw: st.DrawFn, lines: st.SearchStrategy[bytes]) -> bytes:
    line = draw(lines)
    place = draw(st.integers(0, len(line)))
    ways: list[Callable[[], bytes]] = [
        lambda: BYTE_ORDER_MARK + line,
        lambda: line + b"\r",
        lambda: b" " + line + b"\t",
        lambda: line[:place],
        lambda: line[:place] + b"\xff" + line[place:],
        lambda: line[:place] + b"\\ud800" + line[place:],
        lambda: line[:place] + b"1e999" + line[place:],
        lambda: line + line,
    ]
    return draw(st.sampled_from(ways))()


_encoded = (_turns | _request | _batch_line | _mixed_up).map(msgspec.json.encode)

#: None of them holds a newline.
raw_lines: st.SearchStrategy[bytes] = (
    _encoded
    | _encoded
    | _disfigured(_encoded)
    | st.sampled_from([b"", b"\r", b" ", BYTE_ORDER_MARK, b"not json", b"7", b"{}", b"[" * 2000])
    | st.binary(max_size=12).map(lambda data: data.replace(b"\n", b""))
)
