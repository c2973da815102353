"""The scheduler and its blocks under random work: nothing is lost, nobody starves, every step is sound."""

from collections.abc import Iterator
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.kv_cache import BlockPool
from model.prefix import BlockKeys
from model.scheduler import _LOOKAHEAD, Chunk, Scheduler, Sequence
from tests.unit.model.simulation import ROPES, SETTING, WORK, Setting, Work, simulate


@settings(max_examples=400, deadline=None)
@given(work=st.lists(WORK, min_size=1, max_size=12), setting=SETTING)
def test_every_request_ends_and_every_block_comes_back(work: list[Work], setting: Setting) -> None:
    simulation = simulate(work, setting)
    simulation.check_blocks()
    assert simulation.pool.num_free == simulation.pool.num_blocks
    for name, item in simulation.work.items():
        if simulation.outcomes[name] == "abort":
            assert item.abort_at is not None
            continue
        sequence = simulation.sequences[name]
        assert sequence.num_known - sequence.prompt_len == item.answered
        if item.scored:
            assert simulation.scored[name] == list(range(len(item.prompt) - 1))


def test_the_simulation_meets_what_it_is_for() -> None:
    """Hits, preemptions and reuse of blocks do occur in it, with each rope."""
    common = {"shared": 12, "tail": [0], "generated": 20, "stops": None, "abort_at": None, "scored": False}
    work = [Work(stem=number % 3, arrival=number, **common) for number in range(12)]
    for rope, ahead in product(ROPES, (False, True)):
        setting = Setting(block_size=4, spare_blocks=3, seqs=4, tokens=16, rope=rope, ahead=ahead)
        simulation = simulate(work, setting)
        assert simulation.scheduler.num_preemptions > 0
        assert any(sequence.num_cached for sequence in simulation.sequences.values())


def scheduler_of(
    num_blocks: int,
    *,
    block_size: int = 4,
    seqs: int = 8,
    tokens: int = 64,
    scored: int = 256,
    max_model_len: int = 10**9,
) -> Scheduler:
    return Scheduler(
        BlockPool(num_blocks),
        block_size=block_size,
        max_num_seqs=seqs,
        max_step_tokens=tokens,
        max_scored_tokens=scored,
        max_model_len=max_model_len,
    )


def sequence_of(name: str, tokens: int | list[int], *, block_size: int | None = None) -> Sequence:
    """With a block size, one that shares."""
    own = [0] * tokens if isinstance(tokens, int) else list(tokens)
    keys = BlockKeys(block_size, 1.0) if block_size else None
    return Sequence(id=name, tokens=own, prompt_len=len(own), keys=keys)


def advance(chunks: list[Chunk]) -> list[tuple[str, int]]:
    """Compute the chunks; say which they were."""
    plan = [(str(chunk.sequence.id), chunk.num_tokens) for chunk in chunks]
    for chunk in chunks:
        samples = chunk.samples
        chunk.sequence.num_computed += chunk.num_tokens
        if samples:
            chunk.sequence.tokens.append(0)
    return plan


def test_a_step_mixes_decoded_tokens_with_a_chunk_of_a_prompt() -> None:
    scheduler = scheduler_of(64, tokens=10)
    scheduler.add(sequence_of("first", 4))
    scheduler.add(sequence_of("second", 20))
    assert [advance(scheduler.schedule()) for _ in range(4)] == [
        [("first", 4), ("second", 6)],
        [("first", 1), ("second", 9)],
        [("first", 1), ("second", 5)],
        [("first", 1), ("second", 1)],
    ]


def test_a_short_cache_preempts_the_newest_which_comes_back_before_later_arrivals() -> None:
    scheduler = scheduler_of(6)
    for name, length in (("old", 7), ("new", 7), ("later", 20)):
        scheduler.add(sequence_of(name, length))
    while not scheduler.num_preemptions:
        advance(scheduler.schedule())
    assert list(scheduler.running) == ["old"]
    assert list(scheduler.waiting) == ["new", "later"]
    assert scheduler.waiting["new"].num_computed == 0
    assert scheduler.waiting["new"].num_generated > 0


def test_admission_leaves_each_running_sequence_a_block_to_grow_into() -> None:
    """Unless it is as long as it can get."""
    for longest, admitted in ((12, []), (4, ["second"])):
        scheduler = scheduler_of(2, max_model_len=longest)
        for name in ("first", "second"):
            scheduler.add(sequence_of(name, 3))
        assert advance(scheduler.schedule()) == [("first", 3), *((name, 3) for name in admitted)]


@pytest.mark.parametrize("length", [4, 8, 12, 5, 1])
def test_a_prompt_that_is_all_there_computes_one_token(length: int) -> None:
    """And less than a block more where the prompt does not end with one."""
    scheduler = scheduler_of(64)
    scheduler.add(sequence_of("first", length, block_size=4))
    assert advance(scheduler.schedule()) == [("first", length)]
    scheduler.remove("first")
    again = sequence_of("again", length, block_size=4)
    scheduler.add(again)
    assert advance(scheduler.schedule()) == [("again", length % 4 or 1)]
    assert again.num_cached == length - (length % 4 or 1)
    assert again.num_found == length - length % 4


def test_a_prompt_finds_what_the_same_step_computes() -> None:
    scheduler = scheduler_of(64)
    for name, tail in (("first", [7, 7]), ("second", [8]), ("third", [9, 9, 9])):
        scheduler.add(sequence_of(name, [1] * 8 + tail, block_size=4))
    chunks = scheduler.schedule()
    assert [chunk.sequence.blocks[:2] for chunk in chunks] == [chunks[0].sequence.blocks[:2]] * 3
    assert advance(chunks) == [("first", 10), ("second", 1), ("third", 3)]


def test_an_answer_is_found_as_well() -> None:
    """By the prompt that goes on with it, but for its last token, which was never computed."""
    scheduler = scheduler_of(64)
    answered = sequence_of("answered", [1] * 6, block_size=4)
    scheduler.add(answered)
    for _ in range(7):
        advance(scheduler.schedule())
    assert len(answered.tokens) == 13
    scheduler.remove("answered")
    scheduler.add(sequence_of("again", [*answered.tokens, 5], block_size=4))
    assert advance(scheduler.schedule()) == [("again", 2)]


def test_a_token_that_is_being_sampled_is_in_no_key() -> None:
    """Also where its sequence is preempted, and looked for in the cache, before it is known."""
    scheduler = scheduler_of(5, block_size=1)
    for name, first in (("old", 5), ("new", 6)):
        scheduler.add(sequence_of(name, [first, 1], block_size=1))
    new = scheduler.waiting["new"]
    for row, chunk in enumerate(scheduler.schedule()):
        chunk.sequence.num_computed += chunk.num_tokens
        chunk.sequence.await_token(row)
    scheduler.schedule()
    assert "new" in scheduler.waiting
    new.learn(8)
    assert new.keys is not None
    assert new.keys.up_to(new.tokens, 3) == BlockKeys(1, 1.0).up_to([6, 1, 8], 3)


def test_a_sequence_is_not_its_own_hit_without_keys() -> None:
    scheduler = scheduler_of(64)
    for name in ("first", "second"):
        scheduler.add(sequence_of(name, 8))
    assert advance(scheduler.schedule()) == [("first", 8), ("second", 8)]


def test_the_first_of_many_with_a_new_prefix_computes_it_for_all() -> None:
    """100 texts behind an instruction of 400 tokens, 16 at a time, in steps of 64 tokens."""
    scheduler = scheduler_of(4000, seqs=16, tokens=64)
    prefix, tails = [1] * 400, [[2 + number % 250] * (1 + number % 7) for number in range(100)]
    for number, tail in enumerate(tails):
        scheduler.add(sequence_of(str(number), prefix + tail, block_size=4))
    computed = 0
    while scheduler.waiting or scheduler.running:
        chunks = scheduler.schedule()
        computed += sum(size for _, size in advance(chunks))
        for chunk in chunks:
            if chunk.sequence.num_generated:
                scheduler.remove(chunk.sequence.id)
    # Tails that are alike are found too, where they fill a block; here at most that many fewer.
    assert computed <= len(prefix) + sum(map(len, tails))
    assert computed >= len(prefix) + len(tails)


def test_whoever_has_another_beginning_passes_those_that_wait_for_the_first() -> None:
    """A leader leaves room in a step where its chunks are bounded by what is scored."""
    scheduler = scheduler_of(1000, seqs=4, tokens=40, scored=8)
    leader = sequence_of("leader", [1] * 18, block_size=4)
    leader.num_scored = 0
    scheduler.add(leader)
    for name, tokens in (("follower", [1] * 18), ("part", [1] * 9), ("other", [2] * 9)):
        scheduler.add(sequence_of(name, tokens, block_size=4))
    assert advance(scheduler.schedule()) == [("leader", 8), ("part", 1), ("other", 9)]
    assert advance(scheduler.schedule()) == [("leader", 8), ("part", 1), ("other", 1), ("follower", 2)]


def test_those_that_wait_for_a_leader_go_on_when_it_is_gone() -> None:
    scheduler = scheduler_of(1000, tokens=8)
    for name in ("leader", "second", "third"):
        scheduler.add(sequence_of(name, 21, block_size=4))
    assert advance(scheduler.schedule()) == [("leader", 8)]
    scheduler.remove("leader")
    assert advance(scheduler.schedule()) == [("second", 8)], "what the leader had computed is found"
    assert scheduler.running["second"].num_cached == 8
    assert advance(scheduler.schedule()) == [("second", 5), ("third", 1)]


class Watched(dict[object, Sequence]):
    """Counts the sequences that are looked at."""

    looked_at = 0

    def values(self) -> Iterator[Sequence]:  # type: ignore[override]
        for value in super().values():
            self.looked_at += 1
            yield value

    def __iter__(self) -> Iterator[object]:
        for key in super().__iter__():
            self.looked_at += 1
            yield key


def test_with_the_batch_full_none_of_the_waiting_is_looked_at() -> None:
    scheduler, waiting = scheduler_of(64, seqs=1), Watched()
    scheduler.add(sequence_of("running", 4))
    advance(scheduler.schedule())
    waiting.update({str(number): sequence_of(str(number), 4) for number in range(10_000)})
    scheduler.waiting = waiting  # type: ignore[assignment]
    assert advance(scheduler.schedule()) == [("running", 1)]
    assert waiting.looked_at == 0


@pytest.mark.parametrize("length", [40, 4000])
def test_held_back_by_a_leader_the_same_few_of_the_waiting_are_looked_at(length: int) -> None:
    scheduler, waiting = scheduler_of(10_000, seqs=8, scored=4), Watched()
    leader = sequence_of("leader", length, block_size=4)
    leader.num_scored = 0
    scheduler.add(leader)
    advance(scheduler.schedule())
    waiting.update({str(number): sequence_of(str(number), length, block_size=4) for number in range(10_000)})
    scheduler.waiting = waiting  # type: ignore[assignment]
    for _ in range(5):
        assert advance(scheduler.schedule()) == [("leader", 4)]
    assert 5 <= waiting.looked_at <= 5 * (8 + _LOOKAHEAD)
