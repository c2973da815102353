"""What passes between a worker and its engine process: MessagePack frames over a socket pair.

A frame is a list of messages, so that a thousand short answers do not cost a thousand system calls. Owns the
messages and their framing. Holds no text of prompts, only token ids, and never unpickles anything.
"""

import socket
import struct
from collections.abc import Sequence
from typing import BinaryIO

import msgspec

from model.request import SamplingParams, TokenLogprob

_LENGTH = struct.Struct("<I")
#: How often an engine that steps says so.
PROGRESS_SECONDS = 0.25


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the engine process builds its engine; the fields are those of `model.EngineConfig`."""

    path: str
    device: str
    dtype: str
    quantization: str
    tensor_parallel_size: int
    max_model_len: int | None
    kv_cache_bytes: int | None
    max_num_seqs: int | None
    max_step_tokens: int | None
    rope_scaling: str | None
    attention: str
    block_size: int | None
    prefix_caching: bool | None
    master_port: int | None
    num_threads: int | None
    #: CPUs that the process and its ranks are bound to, where the group is one of CPUs.
    cpus: tuple[int, ...]
    #: Of an echo engine: what a step takes.
    echo_step_seconds: float = 0.0


class Generate(msgspec.Struct, frozen=True, tag=True):
    """Worker → engine: answer this prompt."""

    id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams


class Abort(msgspec.Struct, frozen=True, tag=True):
    """Worker → engine: these are not wanted any more; no answer follows."""

    ids: tuple[str, ...]


class Ready(msgspec.Struct, frozen=True, tag=True):
    """Engine → worker: the model is loaded."""

    max_model_len: int
    #: Whose versions matter to the output: torch, the device's own libraries.
    versions: dict[str, str]


class Failed(msgspec.Struct, frozen=True, tag=True):
    """Engine → worker: it can not start, and why; or it must end."""

    code: str
    message: str


class Refused(msgspec.Struct, frozen=True, tag=True):
    """Engine → worker: this request is not possible."""

    id: str
    code: str
    message: str


class Finished(msgspec.Struct, frozen=True, tag=True):
    """Engine → worker: the answer."""

    id: str
    text: str
    finish_reason: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    logprobs: tuple[TokenLogprob, ...] | None
    #: Seconds of engine time that fell to this request: steps shared by all that were in the engine.
    engine_seconds: float


class Progress(msgspec.Struct, frozen=True, tag=True):
    """Engine → worker, now and then while it steps: a sign of life, and what it is doing."""

    steps: int
    #: Engine seconds divided by the requests in it, added up: what a request pays from its start to its end.
    clock: float
    running: int
    waiting: int
    kv_blocks_used: int
    kv_blocks_total: int
    #: Bytes in use on the device; None where that is not known.
    device_memory: int | None


ToEngine = Generate | Abort
FromEngine = Ready | Failed | Refused | Finished | Progress

_encoder = msgspec.msgpack.Encoder()
_to_engine: msgspec.msgpack.Decoder[list[ToEngine]] = msgspec.msgpack.Decoder(list[ToEngine])
_from_engine: msgspec.msgpack.Decoder[list[FromEngine]] = msgspec.msgpack.Decoder(list[FromEngine])


def send(connection: socket.socket, messages: Sequence[ToEngine | FromEngine]) -> None:
    """Send messages as one frame; `OSError` if the other side is gone."""
    body = _encoder.encode(messages)
    connection.sendall(_LENGTH.pack(len(body)) + body)


def receive_for_engine(stream: BinaryIO) -> list[ToEngine] | None:
    """The next messages to the engine; None when the worker is gone."""
    body = _frame(stream)
    return None if body is None else _to_engine.decode(body)


def receive_from_engine(stream: BinaryIO) -> list[FromEngine] | None:
    """The next messages from the engine; None when it is gone."""
    body = _frame(stream)
    return None if body is None else _from_engine.decode(body)


def _frame(stream: BinaryIO) -> bytes | None:
    """One frame's body; a connection cut within a frame ends like one cut between two."""
    try:
        head = stream.read(_LENGTH.size)
        if len(head) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack(head)
        body = stream.read(length)
    except ConnectionError:
        return None
    return body if len(body) == length else None
