"""Finds repeated `custom_id`s exactly, among any number of lines, in bounded memory.

Ids are dealt to buckets by their hash, so that equal ones meet in one bucket; buckets spill to files, and
each is checked alone. Owns the files it makes in the folder it is given. Never reads the input.
"""

import heapq
import io
from collections.abc import Iterator
from contextlib import ExitStack
from hashlib import blake2b
from pathlib import Path

import msgspec

_BUCKETS = 128
#: Bytes of ids held in memory before they go to the files.
_MEMORY = 16 * 1024 * 1024
_encode = msgspec.json.Encoder().encode


class CustomIds:
    """The ids of one submission, added in the order of their lines."""

    def __init__(self, folder: Path, memory: int = _MEMORY) -> None:
        self._folder = folder
        self._memory = memory
        self._buckets = [bytearray() for _ in range(_BUCKETS)]
        self._held = 0

    def add(self, line: int, custom_id: str) -> None:
        """Note that the line has this id."""
        row = b"%d\t%b\n" % (line, _encode(custom_id))  # as JSON no id holds a tab or a newline
        self._buckets[hash(custom_id) % _BUCKETS] += row
        self._held += len(row)
        if self._held > self._memory:
            self._spill()

    def repeated(self) -> Iterator[tuple[int, str]]:
        """Lines whose id an earlier line has, with the id, in the order of the lines."""
        with ExitStack() as files:
            runs = []
            for number in range(_BUCKETS):
                rows = self._repeated_rows(number)
                if (first := next(rows, None)) is None:
                    continue
                run = self._folder / f"repeated-{number}"
                with run.open("wb") as file:
                    file.write(first)
                    file.writelines(rows)
                runs.append(map(_fields, files.enter_context(run.open("rb"))))
            for line, custom_id in heapq.merge(*runs):
                yield line, msgspec.json.decode(custom_id, type=str)

    def _repeated_rows(self, number: int) -> Iterator[bytes]:
        hashes = [hash(row[row.index(b"\t") :]) for row in self._rows(number)]
        if len(set(hashes)) == len(hashes):
            return  # nothing is repeated, as usual: no row needs a second look
        seen: set[bytes] = set()
        for row in self._rows(number):
            # 128 bits, as ids may be long: two of them collide once in 10^18 submissions of 10^10 lines.
            digest = blake2b(row.partition(b"\t")[2], digest_size=16).digest()
            if digest in seen:
                yield row
            seen.add(digest)

    def _rows(self, number: int) -> Iterator[bytes]:
        spilled = self._spill_file(number)
        if spilled.exists():
            with spilled.open("rb") as file:
                yield from file
        yield from io.BytesIO(self._buckets[number])

    def _spill(self) -> None:
        for number, bucket in enumerate(self._buckets):
            if not bucket:
                continue
            with self._spill_file(number).open("ab") as file:
                file.write(bucket)
            bucket.clear()
        self._held = 0

    def _spill_file(self, number: int) -> Path:
        return self._folder / f"ids-{number}"


def _fields(row: bytes) -> tuple[int, bytes]:
    line, _, custom_id = row.partition(b"\t")
    return int(line), custom_id
