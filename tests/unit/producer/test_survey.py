"""The pass over an input: shards that cover it, and files that the workers' side reads back."""

import hashlib
import io
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.dialogue import custom_id_of, parse_line
from jobs.errors import LineError
from jobs.records import JobKeys, Reject, Shard
from jobs.settings import Settings, load_settings
from jobs.shard_index import encode_shard, read_rejects, read_shard
from jobs.storage import Store
from producer.survey import ShardPlan, Survey
from tests.line_strategies import raw_lines

KEYS = JobKeys("job-1")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.chdir(tmp_path)
    return load_settings(
        shard_lines=3, shard_bytes=200, max_line_bytes=300, store_url=f"file://{tmp_path}/store"
    )


def surveyed(settings: Settings, folder: Path, data: bytes) -> tuple[Survey, Store]:
    """The survey, and a store that holds what it made, as after a submission."""
    folder.mkdir()
    survey = Survey(folder, settings)
    store = Store.open(settings)
    with store.writer(KEYS.input) as sink:
        survey.run([data[place : place + 7] for place in range(0, len(data), 7)], sink)
        survey.conclude()
    store.put(KEYS.rejects, survey.rejects.read_bytes())
    store.put(KEYS.shards, survey.index.read_bytes())
    return survey, store


def test_what_was_found_is_what_a_worker_reads(tmp_path: Path, settings: Settings) -> None:
    lines = [
        b'{"prompt":"1","custom_id":"a"}',
        b"not json",
        b'{"prompt":"3","custom_id":"a"}\r',
        b'{"prompt":"' + b"x" * 400 + b'"}',
        b'{"prompt":"' + b"y" * 150 + b'"}',
        b"",
        b'{"prompt":"7","custom_id":"b","max_tokens":0}',
        b'{"prompt":"8","custom_id":"b"}',
        b"\xff",
        b'{"prompt":"10","custom_id":"a"}',
    ]
    data = b"\n".join(lines)
    survey, store = surveyed(settings, tmp_path / "work", data)
    shards = [read_shard(store, KEYS, number) for number in range(survey.shards)]

    assert store.get(KEYS.input) == data
    assert (survey.lines, survey.bytes, survey.sha256) == (10, len(data), hashlib.sha256(data).hexdigest())
    assert b"".join(store.get_range(KEYS.input, s.offset, s.length) for s in shards) == data
    assert [(s.first_line, s.lines) for s in shards] == [(1, 3), (4, 1), (5, 2), (7, 3), (10, 1)]

    found = {line: reject for s in shards for line, reject in read_rejects(store, KEYS, s).items()}
    assert [(line, reject.custom_id, reject.code) for line, reject in found.items()] == [
        (2, None, "invalid_json"),
        (3, "a", "duplicate_custom_id"),
        (4, None, "line_too_large"),
        (6, None, "invalid_json"),
        (7, "b", "invalid_request"),
        (9, None, "invalid_json"),
        (10, "a", "duplicate_custom_id"),
    ]
    assert survey.rejected == 7
    assert [reject.line for reject in survey.unusable] == list(found)
    for shard in shards:
        inside = range(shard.first_line, shard.first_line + shard.lines)
        assert all(line in inside for line in read_rejects(store, KEYS, shard))


def test_only_the_first_unusable_lines_are_kept_at_hand(tmp_path: Path, settings: Settings) -> None:
    survey, _ = surveyed(settings, tmp_path / "work", b"bad\n" * 50)
    assert survey.rejected == 50
    assert [reject.line for reject in survey.unusable] == list(range(1, 21))
    assert len(survey.rejects.read_text().splitlines()) == 50


def test_an_input_without_lines_has_no_shards(tmp_path: Path, settings: Settings) -> None:
    survey, _ = surveyed(settings, tmp_path / "work", b"")
    assert (survey.lines, survey.shards, survey.index.read_bytes()) == (0, 0, b"")


def test_limits_count_the_line_without_its_carriage_return(tmp_path: Path, settings: Settings) -> None:
    line = b'{"prompt":"' + b"x" * (300 - 13) + b'"}'
    assert len(line) == 300
    survey, _ = surveyed(settings, tmp_path / "work", line + b"\r\n" + line + b"\n" + line + b" \n")
    assert [reject.line for reject in survey.unusable] == [3]


@given(st.lists(st.integers(1, 50), max_size=80), st.integers(1, 6), st.integers(1, 60))
def test_shards_cover_all_lines_and_keep_their_limits(
    sizes: list[int], max_lines: int, max_bytes: int
) -> None:
    plan = ShardPlan(max_lines, max_bytes)
    for size in sizes:
        plan.add(size)
    plan.close()
    assert sum(plan.lines) == len(sizes)
    assert sum(plan.lengths) == sum(sizes)
    for length, lines in zip(plan.lengths, plan.lines, strict=True):
        assert 1 <= lines <= max_lines
        assert length <= max_bytes or lines == 1


def unusable(lines: list[bytes], limit: int) -> list[Reject]:
    """The long way round: every line is parsed, and all ids are at hand."""
    rejects, used = [], set()
    for number, line in enumerate(lines, start=1):
        try:
            custom_id = parse_line(line, number, limit).custom_id
        except LineError as error:
            named = custom_id_of(line) if len(line) <= limit + 1 else None
            rejects.append(Reject(line=number, custom_id=named, code=error.code, message=error.message))
            continue
        if custom_id is not None and custom_id in used:
            why = "an earlier line has the same custom_id - at `$.custom_id`"
            rejects.append(Reject(line=number, custom_id=custom_id, code="duplicate_custom_id", message=why))
        used.add(custom_id)
    return rejects


def cut_into_shards(sizes: list[int], rejects: dict[int, int], max_lines: int, max_bytes: int) -> list[Shard]:
    """`rejects` has the bytes of the refusal of each refused line."""
    groups: list[list[int]] = []
    for number, size in enumerate(sizes, start=1):
        group = groups[-1] if groups else []
        if not group or len(group) == max_lines or sum(sizes[n - 1] for n in group) + size > max_bytes:
            groups.append([])
        groups[-1].append(number)
    return [
        Shard(
            offset=sum(sizes[: group[0] - 1]),
            length=sum(sizes[number - 1] for number in group),
            first_line=group[0],
            lines=len(group),
            rejects_offset=sum(size for number, size in rejects.items() if number < group[0]),
            rejects_length=sum(rejects.get(number, 0) for number in group),
        )
        for group in groups
    ]


@given(
    st.lists(raw_lines, max_size=12),
    st.sampled_from([b"\n", b"\r\n"]),
    st.booleans(),
    st.integers(1, 300),
    st.integers(40, 200),
)
def test_the_pass_finds_what_parsing_line_by_line_finds(
    lines: list[bytes], ending: bytes, ended: bool, chunk: int, limit: int
) -> None:
    data = ending.join(lines) + (ending if ended else b"")
    pieces = data.split(b"\n")
    sizes = [len(piece) + 1 for piece in pieces[:-1]] + ([len(pieces[-1])] if pieces[-1] else [])
    rejects = unusable(pieces[: len(sizes)], limit)
    rows = {reject.line: msgspec.json.encode(reject) + b"\n" for reject in rejects}
    shards = cut_into_shards(sizes, {number: len(row) for number, row in rows.items()}, 3, 400)

    sink = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(shard_lines=3, shard_bytes=400, max_line_bytes=limit)
        survey = Survey(Path(folder), settings)
        survey.run([data[place : place + chunk] for place in range(0, len(data), chunk)], sink)
        survey.conclude()
        assert survey.rejects.read_bytes() == b"".join(rows.values())
        assert survey.index.read_bytes() == b"".join(map(encode_shard, shards))
    assert sink.getvalue() == data
    assert survey.sha256 == hashlib.sha256(data).hexdigest()
    assert (survey.lines, survey.bytes, survey.rejected) == (len(sizes), len(data), len(rejects))
    assert list(survey.unusable) == rejects[:20]
