"""Sources become one stream of unchanged bytes, and the stream becomes lines in bounded memory."""

import gzip
import io
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import MissingObjectError
from jobs.settings import Settings, load_settings
from producer.errors import InputError
from producer.inputs import LineCutter, read, resolve


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.chdir(tmp_path)
    return load_settings()


def write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def whole(settings: Settings, *names: str) -> bytes:
    return b"".join(read(resolve(names), settings))


def test_bytes_are_unchanged(tmp_path: Path, settings: Settings) -> None:
    data = b'\xef\xbb\xbf{"a":1}\r\n\xff\x00\n\nlast'
    assert whole(settings, write(tmp_path / "a.jsonl", data)) == data


def test_a_glob_is_its_files_in_order_with_missing_newlines_added(tmp_path: Path, settings: Settings) -> None:
    for name, data in (("b", b"2"), ("a", b"1\n"), ("c", b""), ("d", b"3")):
        write(tmp_path / f"{name}.jsonl", data)
    assert whole(settings, str(tmp_path / "*.jsonl")) == b"1\n2\n3"


def test_a_name_with_glob_characters_is_taken_literally_where_it_exists(
    tmp_path: Path, settings: Settings
) -> None:
    write(tmp_path / "x1.jsonl", b"no\n")
    assert whole(settings, write(tmp_path / "x[1].jsonl", b"yes\n")) == b"yes\n"


def test_standard_input(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(gzip.compress(b"one\ntwo\n"))))
    assert whole(settings, "-") == b"one\ntwo\n"
    with pytest.raises(InputError, match="twice"):
        resolve(["-", "-"])


def test_gzip_is_unzipped_whatever_its_name_and_members(tmp_path: Path, settings: Settings) -> None:
    text = bytes(range(256)) * 20_000
    zipped = (
        gzip.compress(text[:3_000_000]) + gzip.compress(b"") + gzip.compress(text[3_000_000:]) + b"\0" * 512
    )
    assert whole(settings, write(tmp_path / "input", zipped)) == text


def test_a_bomb_of_gzip_comes_in_small_chunks(tmp_path: Path, settings: Settings) -> None:
    bomb = write(tmp_path / "b.gz", gzip.compress(b"\n" * 20_000_000, compresslevel=6))
    sizes = [len(chunk) for chunk in read([bomb], settings)]
    assert sum(sizes) == 20_000_000
    assert max(sizes) <= 1024 * 1024


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda zipped: zipped[:-9], "ends in the middle"),
        (lambda zipped: zipped[:20] + b"\xff\xff\xff\xff" + zipped[24:], "damaged"),
        (lambda zipped: zipped + b"garbage", "damaged"),
    ],
)
def test_damaged_gzip_is_refused(tmp_path: Path, settings: Settings, damage: object, what: str) -> None:
    zipped = gzip.compress(b"".join(b"%d\n" % n for n in range(5000)))
    assert callable(damage)
    with pytest.raises(InputError, match=what):
        whole(settings, write(tmp_path / "d.gz", damage(zipped)))


def test_an_object_is_read_by_its_url(tmp_path: Path, settings: Settings) -> None:
    data = b"line\n" * 3_000_000
    write(tmp_path / "o.jsonl", data)
    chunks = list(read([f"file://{tmp_path}/o.jsonl"], settings))
    assert b"".join(chunks) == data
    assert max(map(len, chunks)) <= 1024 * 1024
    with pytest.raises(MissingObjectError):
        whole(settings, f"file://{tmp_path}/absent.jsonl")


def test_what_is_not_there_is_found_before_reading(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        resolve([str(tmp_path / "absent.jsonl")])
    with pytest.raises(InputError, match="no such file"):
        resolve([str(tmp_path / "*.jsonl")])
    with pytest.raises(InputError, match="is a folder"):
        resolve([str(tmp_path)])


Cut = tuple[bytes | None, int]


def cut(chunks: Iterable[bytes], limit: int) -> list[Cut]:
    """Each line where it was kept, and its size."""
    cutter = LineCutter(limit)
    lines = [line for chunk in chunks for line in cutter.feed(chunk)]
    return [(line if isinstance(line, bytes) else None, len(line)) for line in [*lines, *cutter.end()]]


@given(
    st.lists(st.binary(max_size=12).map(lambda data: data.replace(b"a", b"\n")), max_size=12),
    st.integers(0, 9),
)
def test_lines_are_those_of_the_whole_however_it_is_chunked(chunks: list[bytes], limit: int) -> None:
    data = b"".join(chunks)
    *ended, last = data.split(b"\n")
    lines = [*ended, last] if last else ended
    expected = [(line if len(line) <= limit + 1 else None, len(line)) for line in lines]
    assert cut(chunks, limit) == expected


def test_a_huge_line_is_not_held() -> None:
    def huge() -> Iterator[bytes]:
        for _ in range(256):
            yield b"x" * 1_000_000
        yield b"\nnext\n"

    tracemalloc.start()
    try:
        lines = cut(huge(), 2_000_000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert lines == [(None, 256_000_000), (b"next", 4)]
    assert peak < 8_000_000
