"""Repeated ids are found exactly, in memory and through files."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.duplicates import CustomIds


def repeated(ids: list[str], folder: Path, memory: int) -> list[tuple[int, str]]:
    collection = CustomIds(folder, memory)
    for line, custom_id in enumerate(ids, start=1):
        collection.add(line, custom_id)
    return list(collection.repeated())


@given(
    st.lists(st.text('ab\t\n"\\é', max_size=2), max_size=40),
    st.sampled_from([50, 1_000_000]),
)
def test_second_and_later_occurrences_in_the_order_of_lines(ids: list[str], memory: int) -> None:
    expected = [(line, each) for line, each in enumerate(ids, start=1) if each in ids[: line - 1]]
    with tempfile.TemporaryDirectory() as folder:
        assert repeated(ids, Path(folder), memory) == expected


@pytest.mark.parametrize("memory", [1_000, 16_000_000])
def test_many_ids(tmp_path: Path, memory: int) -> None:
    ids = [f"id-{number % 15_000}" for number in range(20_000)]
    assert repeated(ids, tmp_path, memory) == [(n + 1, ids[n]) for n in range(15_000, 20_000)]
