"""Reading and writing the few fields of a sentencepiece model file that matter here, without protobuf.

The format is sentencepiece_model.proto of google/sentencepiece: ModelProto{1: pieces, 2: trainer_spec,
3: normalizer_spec}, SentencePiece{1: piece, 2: score, 3: type}. Owns nothing else, and trains nothing.
"""

import struct
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One entry of the vocabulary; `kind` is SentencePiece.Type."""

    text: str
    score: float
    kind: int = NORMAL


def pieces(model: bytes) -> list[Piece]:
    """Return the vocabulary in id order. Raises ValueError or IndexError on a file that is not one."""
    found = [_piece(model, start, end) for field, start, end in _fields(model, 0, len(model)) if field == 1]
    if not found:
        raise ValueError("not a sentencepiece model: it has no pieces")
    return found


def with_kind(model: bytes, ids: Collection[int], kind: int) -> bytes:
    """Return the model with the pieces `ids`, whose type must be written out, changed to `kind`."""
    changed = bytearray(model)
    entries = (span for span in _fields(model, 0, len(model)) if span[0] == 1)
    for i, (_, start, end) in enumerate(entries):
        if i in ids:
            at = next(a for field, a, _ in _fields(model, start, end) if field == 3)
            changed[at] = kind
    return bytes(changed)


def build(vocabulary: Sequence[Piece], *, dummy_prefix: bool) -> bytes:
    """Write a BPE model with byte fallback and no normalization, as the family's are.

    `dummy_prefix` puts a space before the text, as Llama's tokenizer does and InternLM's does not.
    """
    body = b"".join(_message(1, _piece_bytes(piece)) for piece in vocabulary)
    trainer = (
        _number(3, 2) + _number(4, len(vocabulary)) + _number(35, 1)
    )  # model_type BPE, size, byte_fallback
    for field, text in ((40, "<unk>"), (41, "<s>"), (42, "</s>")):
        i = next((i for i, piece in enumerate(vocabulary) if piece.text == text), None)
        trainer += _number(field, (1 << 64) - 1 if i is None else i)
    normalizer = _message(1, b"identity") + _number(3, dummy_prefix) + _number(4, 0)
    return body + _message(2, trainer) + _message(3, normalizer)


def _piece_bytes(piece: Piece) -> bytes:
    score = _tag(2, _FIXED32) + struct.pack("<f", piece.score)
    return _message(1, piece.text.encode()) + score + _number(3, piece.kind)


def _piece(model: bytes, start: int, end: int) -> Piece:
    text, score, kind = "", 0.0, NORMAL
    for field, a, b in _fields(model, start, end):
        if field == 1:
            text = model[a:b].decode()
        elif field == 2:
            (score,) = struct.unpack_from("<f", model, a)
        elif field == 3:
            kind, _ = _varint(model, a)
    return Piece(text=text, score=score, kind=kind)


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield (field number, start, end) of each value of a message."""
    while at < end:
        key, at = _varint(data, at)
        field, wire = key >> 3, key & 7
        if wire == _VARINT:
            _, stop = _varint(data, at)
        elif wire == _BYTES:
            length, at = _varint(data, at)
            stop = at + length
        elif wire in {_FIXED32, _FIXED64}:
            stop = at + (4 if wire == _FIXED32 else 8)
        else:
            raise ValueError(f"not a sentencepiece model: wire type {wire} at byte {at}")
        if stop > end:
            raise ValueError(f"truncated sentencepiece model: a field runs over byte {end}")
        yield field, at, stop
        at = stop


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def _tag(field: int, wire: int) -> bytes:
    return _encoded(field << 3 | wire)


def _number(field: int, value: int) -> bytes:
    return _tag(field, _VARINT) + _encoded(value)


def _message(field: int, body: bytes) -> bytes:
    return _tag(field, _BYTES) + _encoded(len(body)) + body


def _encoded(value: int) -> bytes:
    value = int(value)
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
