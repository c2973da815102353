"""Where each shard of a job begins: `shards.idx`, one entry of fixed width per shard, and `rejects.jsonl`.

A worker reads its own entry by its place in the file, so that neither the ledger nor a worker ever holds the
table of a job with a hundred thousand shards.
"""

import msgspec

from jobs.errors import StoreError
from jobs.records import JobKeys, Reject, Shard
from jobs.storage import Store

#: Bytes of an entry: the shard as a JSON array, padded with spaces, and a newline.
ENTRY_BYTES = 96
#: Made here, before there are threads: msgspec's first decode of a type is not safe among several.
_reject = msgspec.json.Decoder(Reject)


def encode_shard(shard: Shard) -> bytes:
    """The shard's entry."""
    fields = [getattr(shard, name) for name in Shard.__struct_fields__]
    entry = msgspec.json.encode(fields).ljust(ENTRY_BYTES - 1) + b"\n"
    if len(entry) != ENTRY_BYTES:
        raise StoreError(f"a shard's entry needs {len(entry)} bytes: an input this large can not be indexed")
    return entry


def read_shard(store: Store, keys: JobKeys, number: int) -> Shard:
    """One shard's entry, from the store."""
    entry = store.get_range(keys.shards, number * ENTRY_BYTES, ENTRY_BYTES)
    try:
        fields = msgspec.json.decode(entry, type=list[int])
        return Shard(**dict(zip(Shard.__struct_fields__, fields, strict=True)))
    except (msgspec.DecodeError, ValueError) as error:
        raise StoreError(f"{store.url}: entry {number} of {keys.shards} is damaged: {error}") from error


def read_rejects(store: Store, keys: JobKeys, shard: Shard) -> dict[int, Reject]:
    """The shard's refused lines by number."""
    data = store.get_range(keys.rejects, shard.rejects_offset, shard.rejects_length)
    rejects = (_reject.decode(line) for line in data.splitlines())
    return {reject.line: reject for reject in rejects}
