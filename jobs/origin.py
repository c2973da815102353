"""Which line of the job that is tried again each line of a retry is: `origin.idx`.

Owns the format: an entry of fixed width per line of the retry, unsigned 64-bit numbers, little-endian,
rising, counted from 1. Never knows why a line is tried again.
"""

import struct
from collections.abc import Iterator

from jobs.errors import StoreError
from jobs.records import JobKeys
from jobs.storage import Store

_ENTRY = struct.Struct("<Q")


def encode_origin(line: int) -> bytes:
    """The entry of the retry's next line: its number in the job that is tried again."""
    return _ENTRY.pack(line)


def read_origins(store: Store, keys: JobKeys) -> Iterator[int]:
    """The entries of a retry in the order of its lines, in bounded memory."""
    rest = b""
    for chunk in store.stream(keys.origin):
        data = rest + chunk
        whole = len(data) - len(data) % _ENTRY.size
        yield from (line for (line,) in _ENTRY.iter_unpack(data[:whole]))
        rest = data[whole:]
    if rest:
        raise StoreError(f"{store.url}: {keys.origin} is damaged: it ends within an entry")
