"""Keys stand for a block's tokens, all before them and the base that they are turned by."""

from hypothesis import given, settings
from hypothesis import strategies as st

from model.families import Rope
from model.prefix import BlockKeys
from model.rope import base_of


def keys(tokens: list[int], *, size: int = 4, base: float = 10000.0) -> list[bytes]:
    return BlockKeys(size, base).up_to(tokens, len(tokens))


def test_only_full_blocks_have_keys() -> None:
    tokens = list(range(10))
    assert [len(keys(tokens[:count])) for count in range(10)] == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]


def test_a_key_stands_for_all_that_is_before() -> None:
    own, other = keys([1, 2, 3, 4, 5, 6, 7, 8]), keys([9, 2, 3, 4, 5, 6, 7, 8])
    assert own[0] != other[0]
    assert own[1] != other[1]
    # The same block at another place is another.
    same = keys([5, 5, 5, 5, 5, 5, 5, 5])
    assert same[0] != same[1]


def test_tokens_do_not_run_into_one_another() -> None:
    assert keys([1, 23, 4, 5]) != keys([12, 3, 4, 5])
    assert keys([1, 256, 0, 0]) != keys([1, 0, 1, 0])
    assert keys([0, 0, 0, 0]) != keys([0, 0, 0, 65536])


def test_another_base_is_another_prefix() -> None:
    assert keys([1] * 8) == keys([1] * 8)
    assert not set(keys([1] * 8)) & set(keys([1] * 8, base=10000.5))


@settings(max_examples=200, deadline=None)
@given(
    tokens=st.lists(st.integers(0, 2), max_size=24),
    asked=st.lists(st.integers(0, 24), max_size=6),
    size=st.integers(1, 5),
)
def test_keys_are_the_same_in_whatever_portions_they_are_asked_for(
    tokens: list[int], asked: list[int], size: int
) -> None:
    """While tokens are added behind, as in an answer that grows."""
    grown = BlockKeys(size, 1.0)
    for count in asked:
        own = tokens[: min(count, len(tokens))]
        assert grown.up_to(own + tokens[len(own) :], len(own)) == keys(own, size=size, base=1.0)


@settings(max_examples=200, deadline=None)
@given(
    first=st.lists(st.integers(0, 1), min_size=1, max_size=16),
    second=st.lists(st.integers(0, 1), min_size=1, max_size=16),
    size=st.integers(1, 4),
)
def test_as_many_keys_are_equal_as_blocks_are(first: list[int], second: list[int], size: int) -> None:
    common = next((n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)
    common = min(len(first), len(second)) if common is None else common
    equal = [a == b for a, b in zip(keys(first, size=size), keys(second, size=size), strict=False)]
    assert equal == [number < common // size for number in range(len(equal))]


def test_prompts_share_a_base_where_dynamic_rope_gives_them_one() -> None:
    """Up to max_position all are alike; beyond, a base goes with a prompt length."""
    rope = Rope(theta=10000.0, kind="dynamic", factor=2.0, max_position=64)
    bases = {length: base_of(rope, 32, length) for length in (1, 63, 64, 65, 66, 150)}
    assert bases[1] == bases[63] == bases[64] == 10000.0
    assert len({bases[length] for length in (64, 65, 66, 150)}) == 4
    # n = 150: 10000 * (2 * 150 / 64 - 1) ** (32 / 30)
    assert abs(bases[150] / (10000 * (2 * 150 / 64 - 1) ** (32 / 30)) - 1) < 1e-6
