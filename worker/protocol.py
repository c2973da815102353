"""What passes between a worker and its engine process: MessagePack frames over a socket pair.

Owns the messages and their framing. Holds no text of prompts, only token ids, and never unpickles anything.
"""

import socket
import struct
from typing import BinaryIO

import msgspec

from model.request import SamplingParams, TokenLogprob

_LENGTH = struct.Struct("<I")


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the engine process builds its engine; the fields are those of `model.EngineConfig`."""

    path: str
    device: str
    dtype: str
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


ToEngine = Generate | Abort
FromEngine = Ready | Failed | Refused | Finished

_encoder = msgspec.msgpack.Encoder()
_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_from_engine: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)


def send(connection: socket.socket, *messages: ToEngine | FromEngine) -> None:
    """Send messages as one write; `OSError` if the other side is gone."""
    frames = bytearray()
    for message in messages:
        body = _encoder.encode(message)
        frames += _LENGTH.pack(len(body)) + body
    connection.sendall(frames)


def receive_for_engine(stream: BinaryIO) -> ToEngine | None:
    """The next message to the engine; None when the worker is gone."""
    body = _frame(stream)
    return None if body is None else _to_engine.decode(body)


def receive_from_engine(stream: BinaryIO) -> FromEngine | None:
    """The next message from the engine; None when it is gone."""
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
