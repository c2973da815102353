"""Who holds which block, what the free ones still contain, and which is reused first."""

import pytest

from model.errors import ConfigError
from model.kv_cache import BlockPool, CachePlan, blocks_for


def filled(pool: BlockPool, keys: bytes) -> list[int]:
    """Blocks that a sequence took and computed, one for each letter."""
    blocks = pool.take(len(keys))
    for number, block in enumerate(blocks):
        pool.announce(block, keys[number : number + 1])
        pool.settle(block)
    return blocks


def found(pool: BlockPool, keys: bytes) -> list[int]:
    return pool.find(keys[number : number + 1] for number in range(len(keys)))


def test_blocks_are_those_from_the_first_on() -> None:
    pool = BlockPool(4, first=1)
    assert sorted(pool.take(4)) == [1, 2, 3, 4]
    assert pool.num_free == 0
    assert pool.num_blocks == 4


def test_blank_blocks_lie_close_together_and_go_before_those_with_contents() -> None:
    pool = BlockPool(6)
    blocks = filled(pool, b"ab")
    assert blocks == [0, 1]
    pool.give_back(blocks)
    assert pool.num_free == 6
    assert pool.take(4) == [2, 3, 4, 5]
    assert found(pool, b"ab") == blocks


def test_the_least_recently_used_goes_first_and_the_tail_before_the_beginning() -> None:
    pool = BlockPool(5)
    first, second = filled(pool, b"abc"), filled(pool, b"xy")
    pool.give_back(first)
    pool.give_back(second)
    assert pool.take(1) == first[2:]
    assert found(pool, b"abc") == first[:2]
    # A hit makes it the last to go.
    pool.hold(first[:2])
    pool.give_back(first[:2])
    assert pool.take(2) == [second[1], second[0]]
    assert found(pool, b"xy") == []
    assert pool.take(2) == [first[1], first[0]]
    assert found(pool, b"abc") == []


def test_a_block_is_free_when_its_last_holder_gives_it_back() -> None:
    pool = BlockPool(2)
    blocks = filled(pool, b"a")
    pool.hold(blocks)
    assert pool.num_unheld(blocks) == 0
    pool.give_back(blocks)
    assert (pool.num_free, pool.num_unheld(blocks)) == (1, 0)
    pool.give_back(blocks)
    assert (pool.num_free, pool.num_unheld(blocks)) == (2, 1)
    pool.hold(blocks)
    assert (pool.num_free, pool.num_unheld(blocks)) == (1, 0)
    assert pool.take(1) != blocks


def test_what_is_reused_is_found_no_more_even_while_another_has_it() -> None:
    """The first that announces a key has it; a second with the same contents is nobody's hit."""
    pool = BlockPool(2)
    first, second = filled(pool, b"a"), filled(pool, b"a")
    assert found(pool, b"a") == first
    pool.give_back(second)
    assert pool.take(1) == second
    assert found(pool, b"a") == first
    pool.give_back(first)
    assert pool.take(1) == first
    assert found(pool, b"a") == []


def test_found_is_up_to_the_first_that_is_unknown() -> None:
    pool = BlockPool(4)
    blocks = filled(pool, b"ac")
    assert found(pool, b"abc") == blocks[:1]
    assert found(pool, b"bac") == []


def test_what_is_announced_is_ready_once_settled() -> None:
    pool = BlockPool(2)
    (block,) = pool.take(1)
    pool.announce(block, b"a")
    assert found(pool, b"a") == [block]
    assert not pool.is_ready(block)
    pool.settle(block)
    assert pool.is_ready(block)


def test_what_was_announced_and_never_computed_is_forgotten() -> None:
    pool = BlockPool(2)
    blocks = pool.take(2)
    pool.announce(blocks[0], b"a")
    pool.announce(blocks[1], b"b")
    pool.settle(blocks[0])
    pool.give_back(blocks)
    assert found(pool, b"a") == blocks[:1]
    assert found(pool, b"b") == []
    assert pool.take(1) == blocks[1:], "a block without contents goes first"


@pytest.mark.parametrize(("tokens", "size", "blocks"), [(0, 4, 0), (1, 4, 1), (4, 4, 1), (5, 4, 2)])
def test_blocks_for(tokens: int, size: int, blocks: int) -> None:
    assert blocks_for(tokens, size) == blocks


def paged(*, budget_tokens: int, max_model_len: int | None, block_size: int = 16) -> CachePlan:
    return CachePlan.paged(
        token_bytes=100,
        block_size=block_size,
        budget_bytes=100 * budget_tokens,
        max_num_seqs=4,
        max_model_len=max_model_len,
        model_limit=1000,
    )


def test_a_paged_cache_has_what_all_sequences_need_or_the_budget_allows() -> None:
    assert paged(budget_tokens=10**6, max_model_len=100).num_blocks == 4 * 7
    assert paged(budget_tokens=200, max_model_len=100).num_blocks == 12
    assert paged(budget_tokens=10**6, max_model_len=None).max_model_len == 1000
    assert paged(budget_tokens=210, max_model_len=None).max_model_len == 208
    with pytest.raises(ConfigError, match="holds 96 tokens, fewer than one request of 100"):
        paged(budget_tokens=100, max_model_len=100)


def contiguous(*, budget_tokens: int, max_model_len: int | None) -> CachePlan:
    return CachePlan.contiguous(
        token_bytes=100,
        budget_bytes=100 * budget_tokens,
        max_num_seqs=4,
        max_model_len=max_model_len,
        model_limit=1000,
    )


def test_a_contiguous_cache_has_one_stretch_for_each_sequence() -> None:
    whole = contiguous(budget_tokens=10**6, max_model_len=None)
    assert (whole.num_blocks, whole.block_size, whole.max_model_len) == (4, 1000, 1000)
    assert contiguous(budget_tokens=350, max_model_len=100).num_blocks == 3
    assert contiguous(budget_tokens=350, max_model_len=None).max_model_len == 350
    with pytest.raises(ConfigError, match="holds 99 tokens, fewer than one request of 100"):
        contiguous(budget_tokens=99, max_model_len=100)
