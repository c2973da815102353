"""How a finished conversion is known again: by what its source holds, not by when it was written."""

import os
from pathlib import Path

import pytest

from model.convert.target import describe


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "weights").write_bytes(bytes(range(256)) * 100_000)
    return tmp_path


def test_a_source_installed_anew_is_the_same(source: Path) -> None:
    before = describe(source, layout="keep")
    for path in source.iterdir():
        os.utime(path, (1, 1))
    assert describe(source, layout="keep") == before


@pytest.mark.parametrize(("name", "place"), [("config.json", 1), ("weights", 0), ("weights", 25_599_999)])
def test_other_content_of_the_same_size_is_another_source(source: Path, name: str, place: int) -> None:
    before = describe(source)
    content = bytearray((source / name).read_bytes())
    content[place] ^= 1
    (source / name).write_bytes(content)
    assert describe(source) != before


def test_other_parameters_are_another_conversion(source: Path) -> None:
    assert describe(source, dtype="keep") != describe(source, dtype="bfloat16")
