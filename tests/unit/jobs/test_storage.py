"""The store on a local folder: whole objects, ranges, streams, and errors that say what is wrong."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.errors import JobsError, MissingObjectError, SettingsError, StoreError
from jobs.settings import Settings
from jobs.storage import Store, read_url


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(Settings(store_url=f"file://{tmp_path}/a/b"))


def test_the_first_writer_wins(store: Store) -> None:
    store.probe()
    assert store.create("x/y", b"1")
    assert not store.create("x/y", b"2")
    assert store.get("x/y") == b"1"
    store.put("x/y", b"3")
    assert (store.get("x/y"), store.size("x/y")) == (b"3", 1)


def test_what_is_not_there_is_said(store: Store) -> None:
    assert store.size("none") is None
    for read in (store.get, lambda key: store.get_range(key, 0, 1), lambda key: list(store.stream(key))):
        with pytest.raises(MissingObjectError, match="none"):
            read("none")
    store.delete(["none"])


def test_ranges_are_exact_or_an_error(store: Store) -> None:
    store.put("x", b"0123456789")
    assert store.get_range("x", 3, 4) == b"3456"
    assert store.get_range("x", 99, 0) == b""
    with pytest.raises(StoreError):
        store.get_range("x", 8, 5)


def test_a_stream_is_written_and_read_in_pieces(store: Store) -> None:
    data = bytes(range(256)) * 80_000  # more than two chunks
    with store.writer("big") as sink:
        for offset in range(0, len(data), 1_000_003):
            sink.write(data[offset : offset + 1_000_003])
    chunks = list(store.stream("big"))
    assert len(chunks) == 3
    assert b"".join(chunks) == data


def test_a_broken_upload_leaves_nothing(store: Store, tmp_path: Path) -> None:
    def break_off() -> None:
        with store.writer("big") as sink:
            sink.write(b"a" * 20_000_000)
            raise KeyError

    with pytest.raises(KeyError):
        break_off()
    assert store.size("big") is None
    assert list(tmp_path.rglob("big*")) == []


def test_keys_can_not_leave_the_store(store: Store, tmp_path: Path) -> None:
    (tmp_path / "a" / "secret").write_text("x")
    for key in ("../secret", "x/../../secret", "/../secret"):
        with pytest.raises(JobsError):
            store.get(key)


def test_listing_and_deleting(store: Store) -> None:
    for key in ("p/1", "p/2", "q/1"):
        store.put(key, b"")
    assert sorted(store.list("p")) == ["p/1", "p/2"]
    store.delete(["p/1"])
    assert sorted(store.list("p")) == ["p/2"]


def test_an_object_is_read_by_its_url(store: Store, tmp_path: Path) -> None:
    store.put("in/x.jsonl", b"data")
    assert b"".join(read_url(f"file://{tmp_path}/a/b/in/x.jsonl", Settings())) == b"data"
    with pytest.raises(MissingObjectError):
        list(read_url("s3://bucket", Settings()))


def test_a_place_that_is_no_store_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for url in (f"file://{tmp_path}/file", f"file://{tmp_path}/file/x"):
        with pytest.raises(StoreError) as error:
            Store.open(Settings(store_url=url))
        assert "\n" not in str(error.value)
    with pytest.raises(SettingsError, match="ftp://x"):
        Store.open(Settings(store_url="ftp://x"))


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A service that takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield listening.getsockname()[1]


def test_a_service_that_is_away_or_silent_is_told_apart_from_a_slow_one(silent_port: int) -> None:
    """Nobody waits for the long limits of real transfers: the probe gives up within seconds."""
    for port in (9, silent_port):
        store = Store.open(
            Settings.model_validate(
                {
                    "store_url": "s3://bucket/prefix",
                    "s3_endpoint": f"http://127.0.0.1:{port}",
                    "s3_access_key_id": "id",
                    "s3_secret_access_key": "very-secret",
                }
            )
        )
        with pytest.raises(StoreError) as error:
            store.probe()
        assert "s3://bucket/prefix" in str(error.value)
        assert "\n" not in str(error.value)
        assert "very-secret" not in str(error.value)
