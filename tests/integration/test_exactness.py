"""The demo's model, converted and run by this engine, is the model it was made from."""

from pathlib import Path

import pytest

from benchmarks.exactness import CONTINUATION, compare, convert_smollm2, load_reference


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # transformers' GGUF reader reads a read-only map
def test_the_converted_model_is_the_model_it_was_made_from(tmp_path: Path) -> None:
    figures = compare(load_reference(), convert_smollm2(tmp_path / "smollm2"))
    assert len(figures) >= 8
    assert max(row.largest_difference for row in figures) < 1e-3
    assert [row.name for row in figures if row.equal_tokens < CONTINUATION] == []
    # Were two tokens ever this close, equal choices would be luck.
    assert min(row.smallest_gap for row in figures) > max(row.largest_difference for row in figures)
