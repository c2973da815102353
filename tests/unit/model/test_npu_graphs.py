"""Where the rows of a captured step write: nothing is named twice, and nobody's keys are touched."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from model.batch import AttentionMetadata
from model.devices import DecodeLimits
from model.devices.npu_graphs import places

BLOCK = 200  # of two pages of 128


def metadata(slots: list[int]) -> AttentionMetadata:
    count = len(slots)
    return AttentionMetadata(
        num_decodes=count,
        query_starts=np.arange(count + 1, dtype=np.int32),
        context_lens=np.ones(count, np.int32),
        block_tables=np.zeros((count, 1), np.int32),
        slot_mapping=np.array(slots, np.int64),
        block_size=BLOCK,
    )


def limits(*, has_null_block: bool, block_size: int = BLOCK) -> DecodeLimits:
    return DecodeLimits(64, 2, block_size, has_null_block)


@given(
    slots=st.lists(
        st.tuples(st.integers(1, 30), st.integers(0, BLOCK - 1)), min_size=1, max_size=40, unique=True
    ),
    found=st.lists(st.integers(0, BLOCK - 1), max_size=20),
    size=st.integers(0, 20),
)
def test_each_row_has_a_place_of_its_own(slots: list[tuple[int, int]], found: list[int], size: int) -> None:
    """Rows that are cached already come in block 0, maybe at the same offset."""
    own = [block * BLOCK + offset for block, offset in slots]
    rows = len(own) + len(found)
    given_places = places(metadata(own + found), rows + size, limits(has_null_block=True))
    assert given_places is not None
    assert given_places.dtype == np.int32
    assert len(np.unique(given_places)) == len(given_places) == rows + size
    assert given_places[: len(own)].tolist() == [block * 256 + offset for block, offset in slots]
    assert (given_places[len(own) :] < BLOCK).all()


def test_more_rows_than_the_block_has_places_are_not_recorded() -> None:
    found = [0] * 100
    assert places(metadata(found), 200, limits(has_null_block=True)) is not None
    assert places(metadata(found), 201, limits(has_null_block=True)) is None


def test_without_a_null_block_a_batch_fills_the_size() -> None:
    """There block 0 is a sequence's own."""
    exact = places(metadata([3, 205]), 2, limits(has_null_block=False))
    assert exact is not None
    assert exact.tolist() == [3, 256 + 5]
    assert places(metadata([3, 205]), 3, limits(has_null_block=False)) is None
    assert places(metadata([3, 3]), 2, limits(has_null_block=False)) is None
