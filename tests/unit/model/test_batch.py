"""A step's plan: its packing, its way between ranks, and the metadata of attention."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.batch import NULL_BLOCK, Batch, decode_first
from model.scheduler import Chunk, Sequence


def chunk(tokens: list[int], computed: int, num_tokens: int, blocks: list[int], prompt_len: int) -> Chunk:
    sequence = Sequence(id="", tokens=tokens, prompt_len=prompt_len, num_computed=computed, blocks=blocks)
    return Chunk(sequence, num_tokens)


PREFILL = chunk([10, 11, 12, 13, 14, 15], 2, 3, [7, 3], 6)
DECODE = chunk([20, 21, 22], 2, 1, [5], 2)
LAST_CHUNK = chunk([30, 31], 0, 2, [1], 2)


def test_packing() -> None:
    chunks = decode_first([PREFILL, DECODE, LAST_CHUNK])
    assert chunks == [DECODE, PREFILL, LAST_CHUNK]
    batch = Batch.of(chunks, block_size=4)
    assert batch.token_ids.tolist() == [22, 12, 13, 14, 30, 31]
    assert batch.query_starts.tolist() == [0, 1, 4, 6]
    assert batch.context_lens.tolist() == [3, 5, 2]
    assert batch.positions.tolist() == [2, 2, 3, 4, 0, 1]
    assert batch.token_prompt_lens.tolist() == [2, 6, 6, 6, 2, 2]
    assert batch.block_tables.tolist() == [[5, 0], [7, 3], [1, 0]]
    # The prompt's piece does not reach its end, so nothing is sampled after it.
    assert batch.logit_rows.tolist() == [0, 5]
    metadata = batch.attention_metadata(block_size=4)
    assert metadata.num_decodes == 1
    assert metadata.slot_mapping.tolist() == [22, 30, 31, 12, 4, 5]


def test_what_was_found_is_not_written_again() -> None:
    """The last token of a prompt that is there entirely: computed, read from its block, kept nowhere."""
    found = chunk([10, 11, 12, 13, 14, 15, 16, 17], 7, 1, [7, 3], 8)
    found.sequence.num_found = 8
    half = chunk([10, 11, 12, 13, 24, 25], 4, 2, [7, 5], 6)
    half.sequence.num_found = 4
    batch = Batch.of([found, half], block_size=4)
    assert batch.write_starts.tolist() == [8, 4]
    assert batch.block_tables.tolist() == [[7, 3], [7, 5]]
    metadata = batch.attention_metadata(block_size=4)
    assert metadata.slot_mapping.tolist() == [NULL_BLOCK * 4 + 3, 20, 21]
    assert metadata.context_lens.tolist() == [8, 6]


def test_each_scored_position_has_a_row() -> None:
    """Two prompt tokens of three follow within the prompt; the chunk's last samples as well."""
    first = chunk([10, 11, 12, 13], 0, 2, [1], 4)
    last = chunk([20, 21, 22], 1, 2, [2], 3)
    for scored, computed in ((first, 0), (last, 1)):
        scored.sequence.num_scored = computed
    chunks = [Chunk(one.sequence, one.num_tokens) for one in (first, last)]
    assert [one.logit_positions for one in chunks] == [range(2), range(1, 3)]
    assert Batch.of(chunks, block_size=4).logit_rows.tolist() == [0, 1, 2, 3]


CHUNKS = st.lists(
    st.builds(
        lambda computed, count, rest: chunk(
            list(range(computed + count + rest)), computed, count, list(range(40)), computed + count
        ),
        st.integers(0, 20),
        st.integers(1, 9),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=100, deadline=None)
@given(chunks=CHUNKS, block_size=st.integers(1, 8))
def test_a_plan_survives_its_way_between_ranks(chunks: list[Chunk], block_size: int) -> None:
    for number, one in enumerate(chunks):
        one.sequence.num_found = number + 1
    batch = Batch.of(decode_first(chunks), block_size)
    header, body = batch.encode()
    assert Batch.body_size(header) == len(body)
    again = Batch.decode(header, body)
    for name in Batch.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(again, name), getattr(batch, name))


@pytest.mark.parametrize(
    "module", ["model", "model.chat", "model.request", "model.scheduler", "model.config"]
)
def test_the_light_modules_bring_in_no_torch(module: str) -> None:
    code = f"import sys, {module}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
