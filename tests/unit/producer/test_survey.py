"""The pass over an input: shards that cover it, and files that the workers' side reads back."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.records import JobKeys
from jobs.settings import Settings, load_settings
from jobs.shard_index import read_rejects, read_shard
from jobs.storage import Store
from producer.survey import ShardPlan, Survey

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
