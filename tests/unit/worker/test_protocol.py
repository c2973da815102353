"""The frames between worker and engine: whole messages, or the end."""

import io
import socket

import msgspec
import pytest

from model.request import SamplingParams, TokenLogprob
from worker.protocol import Finished, Generate, Refused, receive_for_engine, receive_from_engine, send


def test_messages_arrive_as_they_were_sent() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, theirs.makefile("rb") as stream:
        params = SamplingParams(
            max_tokens=3,
            min_tokens=2,
            min_p=0.5,
            repetition_penalty=1.1,
            presence_penalty=-1,
            frequency_penalty=0.25,
            stop=("x",),
            seed=4,
        )
        asked = Generate("a", (1, 2), params)
        send(ours, [asked, asked])
        send(ours, [asked])
        assert [receive_for_engine(stream), receive_for_engine(stream)] == [[asked, asked], [asked]]
        ours.shutdown(socket.SHUT_WR)
        assert receive_for_engine(stream) is None


def test_an_answer_keeps_its_logprobs() -> None:
    ours, theirs = socket.socketpair()
    record = TokenLogprob(token_id=5, logprob=-0.5, top=((5, -0.5), (6, -1.5)))
    refusal = Refused("b", "invalid_request", "no")
    answer = Finished("a", "é", "stop", 1, 0, 2, (record,), 0.5)
    with ours, theirs, ours.makefile("rb") as stream:
        send(theirs, [answer, refusal])
        assert receive_from_engine(stream) == [answer, refusal]


def test_a_frame_cut_short_is_an_end() -> None:
    for cut in (b"\x01", b"\x05\x00\x00\x00ab"):
        assert receive_for_engine(io.BytesIO(cut)) is None


def test_what_is_no_message_is_refused() -> None:
    body = msgspec.msgpack.encode([{"type": "Nonsense"}])
    with pytest.raises(msgspec.ValidationError):
        receive_for_engine(io.BytesIO(len(body).to_bytes(4, "little") + body))
