"""The index of shards: entries of one width, found by their place."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import StoreError
from jobs.records import JobKeys, Reject, Shard
from jobs.settings import Settings
from jobs.shard_index import ENTRY_BYTES, encode_shard, read_rejects, read_shard
from jobs.storage import Store

KEYS = JobKeys("j")


def shard(*fields: int) -> Shard:
    return Shard(**dict(zip(Shard.__struct_fields__, fields, strict=True)))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(Settings(store_url=f"file://{tmp_path}"))


@given(st.tuples(*[st.integers(0, 10**13)] * 6))
def test_an_entry_has_one_width_up_to_ten_terabytes(fields: tuple[int, ...]) -> None:
    entry = encode_shard(shard(*fields))
    assert len(entry) == ENTRY_BYTES
    assert entry.endswith(b"\n")
    assert msgspec.json.decode(entry) == list(fields)


def test_what_does_not_fit_is_an_error_and_not_cut() -> None:
    with pytest.raises(StoreError, match="can not be indexed"):
        encode_shard(shard(*[10**18] * 6))


def test_entries_are_read_by_number(store: Store) -> None:
    shards = [shard(n * 10, 10, n * 3 + 1, 3, n, 1) for n in range(5)]
    store.put(KEYS.shards, b"".join(map(encode_shard, shards)))
    assert [read_shard(store, KEYS, number) for number in range(5)] == shards
    with pytest.raises(StoreError):
        read_shard(store, KEYS, 5)


def test_a_damaged_entry_is_named(store: Store) -> None:
    store.put(KEYS.shards, b"x" * ENTRY_BYTES)
    with pytest.raises(StoreError, match=r"entry 0 of jobs/j/shards\.idx is damaged"):
        read_shard(store, KEYS, 0)


def test_rejects_are_those_of_the_shard(store: Store) -> None:
    rejects = [Reject(line=n, custom_id=None, code="invalid_json", message="né") for n in (2, 5, 9)]
    rows = [msgspec.json.encode(reject) + b"\n" for reject in rejects]
    store.put(KEYS.rejects, b"".join(rows))
    middle = shard(0, 0, 4, 3, len(rows[0]), len(rows[1]))
    assert read_rejects(store, KEYS, middle) == {5: rejects[1]}
    assert read_rejects(store, KEYS, shard(0, 0, 4, 3, 0, 0)) == {}
