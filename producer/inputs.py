"""Where a job's lines come from: files, globs, standard input, gzip and object URLs, as one stream of bytes.

Owns reading and cutting into lines, in bounded memory whatever the input. Never knows what a line says, and
changes no byte but for a newline between two files where the first has none at its end.
"""

import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from glob import glob
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from jobs.settings import Settings
from jobs.storage import read_url
from producer.errors import InputError

STDIN = "-"
#: Short lines need forty times their bytes once they are cut: what is cut at once must be little.
_CHUNK = 1024 * 1024
#: Compressed bytes given to zlib at once: it copies what lies behind the end of a member.
_ZIPPED_SLICE = 64 * 1024
_GZIP_MAGIC = b"\x1f\x8b"
#: zlib's window bits for a gzip member.
_GZIP = 16 + zlib.MAX_WBITS


def resolve(names: Sequence[str]) -> tuple[str, ...]:
    """Globs expanded and every local file checked, so that a missing one is found before anything begins."""
    if names.count(STDIN) > 1:
        raise InputError("standard input is named twice", "give `-` once")
    return tuple(source for name in names for source in _expanded(name))


def read(sources: Iterable[str], settings: Settings) -> Iterator[bytes]:
    """The sources' bytes one after the other, unzipped, in chunks of a MiB at most."""
    ended = True
    for source in sources:
        gap = not ended
        for chunk in _unzipped(_chunks(source, settings), source):
            if gap:
                yield b"\n"
                gap = False
            yield chunk
            ended = chunk.endswith(b"\n")


class LongLine:
    """Stands for a line that is far over the limit and was not kept: its size alone."""

    __slots__ = ("_size",)

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size


class LineCutter:
    """Cuts a stream of chunks into lines without their newlines.

    Of an unfinished line it holds `limit` bytes at most.
    """

    def __init__(self, limit: int) -> None:
        self._kept_limit = limit + 1  # a carriage return at the end does not count as the line's
        self._pieces: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[bytes | LongLine]:
        """The lines that end in this chunk."""
        first, newline, rest = chunk.partition(b"\n")
        self._keep(first)
        if not newline:
            return
        yield self._taken()
        lines = rest.split(b"\n")
        self._keep(lines.pop())
        for line in lines:
            yield line if len(line) <= self._kept_limit else LongLine(len(line))

    def end(self) -> Iterator[bytes | LongLine]:
        """The last line, where no newline ended it."""
        if self._size:
            yield self._taken()

    def _keep(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > self._kept_limit:
            self._pieces.clear()
        elif piece:
            self._pieces.append(piece)

    def _taken(self) -> bytes | LongLine:
        line = b"".join(self._pieces) if self._size <= self._kept_limit else LongLine(self._size)
        self._pieces.clear()
        self._size = 0
        return line


def _expanded(name: str) -> Sequence[str]:
    if name == STDIN or "://" in name:
        return (name,)
    path = Path(name)
    if path.is_dir():
        raise InputError(f"{name} is a folder", f"name its files: '{name.rstrip('/')}/*.jsonl'")
    if path.exists():
        return (name,)
    matches = glob(name, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
    found = sorted(match for match in matches if Path(match).is_file())
    if not found:
        raise InputError(f"{name}: no such file", "check the path")
    return found


def _chunks(source: str, settings: Settings) -> Iterator[bytes]:
    if "://" in source:
        for data in read_url(source, settings):
            yield from (data[place : place + _CHUNK] for place in range(0, len(data), _CHUNK))
    elif source == STDIN:
        yield from _file_chunks(sys.stdin.buffer)
    else:
        try:
            with Path(source).open("rb") as file:
                yield from _file_chunks(file)
        except OSError as error:
            raise InputError(f"{source} can not be read: {error.strerror}", "check the file") from error


def _file_chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK):
        yield chunk


def _unzipped(chunks: Iterator[bytes], source: str) -> Iterator[bytes]:
    """Gzip is known by its first bytes: no line of JSON begins with them."""
    first = next(chunks, b"")
    chunks = chain((first,), chunks) if first else chunks
    if not first.startswith(_GZIP_MAGIC):
        yield from chunks
        return
    try:
        yield from _gunzipped(chunks, source)
    except zlib.error as error:
        raise InputError(f"{source} is a damaged gzip file: {error}", "compress it again") from error


def _gunzipped(chunks: Iterator[bytes], source: str) -> Iterator[bytes]:
    member = zlib.decompressobj(_GZIP)
    for chunk in chunks:
        for start in range(0, len(chunk), _ZIPPED_SLICE):
            waiting = chunk[start : start + _ZIPPED_SLICE]
            while waiting:
                if member.eof:
                    waiting = waiting.lstrip(b"\0")  # padding is allowed between members
                    member = zlib.decompressobj(_GZIP) if waiting else member
                    continue
                data = member.decompress(waiting, _CHUNK)
                while data:
                    yield data
                    data = b"" if len(data) < _CHUNK else member.decompress(member.unconsumed_tail, _CHUNK)
                waiting = member.unused_data if member.eof else member.unconsumed_tail
    if not member.eof:
        raise InputError(f"{source} ends in the middle of its gzip data", "copy or compress it again")
