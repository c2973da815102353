"""What a message of the queue may be: ours, and nothing else, whatever it tries."""

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import JobsError
from jobs.records import ShardRef
from jobs.transport import read_hint
from tests.messages import NOTHING, hint, message

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def test_our_own_messages_are_read() -> None:
    assert read_hint(message(hint(job="job-1", shard=7))) == ShardRef("job-1", 7)


@pytest.mark.parametrize(
    "hostile",
    [
        None,
        [],
        {},
        {"body": "x", "headers": {}},
        message(b"not json"),
        message(b"[" * 100_000),
        message(b"\x80\x04."),
        message(hint(job="job-1", shard=7), body="%%%"),
        message(hint(job="job-1", shard=7), **{"content-type": "application/x-python-serialize"}),
        message(hint(job="job-1", shard=7), headers={"task": "celery.backend_cleanup"}),
        message(hint(job="job-1", shard=7), headers={"eta": "2031-01-01T00:00:00"}),
        message(hint(job="job-1", shard=7), headers={"timelimit": [1, 1]}),
        message(hint(job="job-1", shard=7), properties={}),
        message([[], {"job": "job-1", "shard": 7}, {**NOTHING, "chain": [{"task": "x"}]}]),
        message([[], {"job": "job-1", "shard": 7}, {**NOTHING, "callbacks": [{"task": "x"}]}]),
        message([["job-1", 7], {}, NOTHING]),
        message(hint(job="../../etc/passwd", shard=7)),
        message(hint(job="job-1:lines", shard=7)),
        message(hint(job="job-1\n", shard=7)),
        message(hint(job="job-1", shard=-1)),
        message(hint(job="job-1", shard=2**60)),
        message(hint(job="job-1", shard=True)),
        message(hint(job="job-1", shard="7")),
        message(hint(job="job-1", shard=7, then="rm")),
        message(hint(job=["job-1"], shard=7)),
        message({"task": "os.system"}),
    ],
)
def test_anything_else_is_refused(hostile: object) -> None:
    with pytest.raises(JobsError):
        read_hint(hostile)


@given(JSON, st.sampled_from(["body", "headers", "properties", "arguments", "whole"]))
def test_whatever_comes_is_read_or_refused(value: Any, place: str) -> None:
    if place == "whole":
        given_message = value
    elif place == "arguments":
        given_message = message(value)
    else:
        given_message = {**message(hint(job="job-1", shard=7)), place: value}
    with contextlib.suppress(JobsError):
        assert isinstance(read_hint(given_message), ShardRef)
