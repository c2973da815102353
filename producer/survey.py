"""The one pass over the input: judges every line, cuts shards, and writes down what is unusable.

Owns `rejects.jsonl` and `shards.idx` as local files, from which they are uploaded. Works in bounded memory
(16 bytes per shard are what grows) and never holds a line beyond the limit.
"""

import hashlib
import heapq
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from jobs.dialogue import DUPLICATE_CUSTOM_ID, check_line, custom_id_of, too_large
from jobs.errors import LineError
from jobs.records import Reject, Shard
from jobs.settings import Settings
from jobs.shard_index import encode_shard
from jobs.storage import Sink
from producer.duplicates import CustomIds
from producer.inputs import LineCutter, LongLine

#: Unusable lines that are kept at hand to show them.
SHOWN = 20


class Survey:
    """What an input is: feed it with `run`, then `conclude`, then read."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.rejects = folder / "rejects.jsonl"
        self.index = folder / "shards.idx"
        self.lines = 0
        self.rejected = 0
        self.bytes = 0
        #: The first `SHOWN` unusable lines, once concluded.
        self.unusable: tuple[Reject, ...] = ()
        self._max_line_bytes = settings.max_line_bytes
        self._digest = hashlib.sha256()
        self._plan = ShardPlan(settings.shard_lines, settings.shard_bytes)
        self._custom_ids = CustomIds(folder)
        self._refused = folder / "refused.jsonl"

    @property
    def sha256(self) -> str:
        """Of all bytes."""
        return self._digest.hexdigest()

    @property
    def shards(self) -> int:
        """Their number, once concluded."""
        return len(self._plan.lengths)

    def run(self, chunks: Iterable[bytes], sink: Sink) -> None:
        """Pass the bytes on unchanged and judge their lines."""
        cutter = LineCutter(self._max_line_bytes)
        with self._refused.open("wb") as refused:
            for chunk in chunks:
                self._digest.update(chunk)
                sink.write(chunk)
                self._judge(cutter.feed(chunk), refused, ended=True)
            self._judge(cutter.end(), refused, ended=False)

    def conclude(self) -> None:
        """Find the repeated ids and write both files."""
        self._plan.close()
        unusable = self._unusable()
        due = next(unusable, None)
        shown: list[Reject] = []
        offset = rejects_offset = 0
        first_line = 1
        with self.rejects.open("wb") as rejects, self.index.open("wb") as index:
            for length, lines in zip(self._plan.lengths, self._plan.lines, strict=True):
                rejects_length = 0
                while due is not None and due.line < first_line + lines:
                    rejects_length += rejects.write(msgspec.json.encode(due) + b"\n")
                    self.rejected += 1
                    if len(shown) < SHOWN:
                        shown.append(due)
                    due = next(unusable, None)
                shard = Shard(
                    offset=offset,
                    length=length,
                    first_line=first_line,
                    lines=lines,
                    rejects_offset=rejects_offset,
                    rejects_length=rejects_length,
                )
                index.write(encode_shard(shard))
                offset += length
                first_line += lines
                rejects_offset += rejects_length
        self.bytes = offset
        self.unusable = tuple(shown)

    def _judge(self, lines: Iterable[bytes | LongLine], refused: BinaryIO, *, ended: bool) -> None:
        """This is where the time goes: what a line does not need is not done for it."""
        limit, add, add_id = self._max_line_bytes, self._plan.add, self._custom_ids.add
        newline = 1 if ended else 0
        number = self.lines
        for line in lines:
            number += 1
            add(len(line) + newline)
            try:
                if isinstance(line, LongLine):
                    raise too_large(limit)
                custom_id = check_line(line, limit)
            except LineError as error:
                refused.write(msgspec.json.encode(_refusal(number, line, error)) + b"\n")
                continue
            if custom_id is not None:
                add_id(number, custom_id)
        self.lines = number

    def _unusable(self) -> Iterator[Reject]:
        return heapq.merge(self._refused_lines(), self._repeated_lines(), key=lambda reject: reject.line)

    def _refused_lines(self) -> Iterator[Reject]:
        with self._refused.open("rb") as file:
            for row in file:
                yield msgspec.json.decode(row, type=Reject)

    def _repeated_lines(self) -> Iterator[Reject]:
        """An id counts as used by usable lines alone: a line that is refused keeps no other from running."""
        for line, custom_id in self._custom_ids.repeated():
            yield Reject(
                line=line,
                custom_id=custom_id,
                code=DUPLICATE_CUSTOM_ID,
                message="an earlier line has the same custom_id - at `$.custom_id`",
            )


def _refusal(number: int, line: bytes | LongLine, error: LineError) -> Reject:
    custom_id = None if isinstance(line, LongLine) else custom_id_of(line)
    return Reject(line=number, custom_id=custom_id, code=error.code, message=error.message)


class ShardPlan:
    """Cuts lines into shards: so many lines or bytes, whichever comes first.

    A shard has more bytes than allowed only if it is a single line.
    """

    def __init__(self, max_lines: int, max_bytes: int) -> None:
        self.lengths = array("Q")
        self.lines = array("Q")
        self._max_lines, self._max_bytes = max_lines, max_bytes
        self._length = self._count = 0

    def add(self, size: int) -> None:
        """Put the next line, of so many bytes, in its shard."""
        if self._count and self._length + size > self._max_bytes:
            self.close()
        self._length += size
        self._count += 1
        if self._count == self._max_lines or self._length >= self._max_bytes:
            self.close()

    def close(self) -> None:
        """End the shard that was begun, if one was."""
        if self._count:
            self.lengths.append(self._length)
            self.lines.append(self._count)
            self._length = self._count = 0
