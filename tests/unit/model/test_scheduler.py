"""The scheduler and its blocks under random work: nothing is lost, nobody starves, every step is sound.

The simulation keeps, for each slot of the cache, what was written there, and checks all that a step reads.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.families import Rope
from model.kv_cache import BlockPool, blocks_for
from model.prefix import BlockKeys
from model.rope import alike, base_of, token_bases
from model.scheduler import _LOOKAHEAD, Chunk, Scheduler, Sequence

#: Prompts begin alike and end differently; a short stem and a long one begin alike as well.
STEMS = ([1] * 40, [1] * 6 + [2] * 34, [3, 1] * 20)
HEAD_DIM = 8
ROPES = {
    "default": Rope(theta=10000.0, max_position=24),
    "dynamic": Rope(theta=10000.0, kind="dynamic", factor=2.0, max_position=24),
    "held": Rope(theta=10000.0, kind="dynamic", factor=2.0, max_position=24, grows=False),
}


@dataclass(frozen=True, slots=True)
class Work:
    """One request, the step at which it arrives, and the step at which its caller gives up, if ever."""

    stem: int
    shared: int
    tail: list[int]
    generated: int
    arrival: int
    abort_at: int | None
    scored: bool

    @property
    def prompt(self) -> list[int]:
        return STEMS[self.stem][: self.shared] + self.tail


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A scheduler's measures, the blocks it has beyond those of the longest request, and the rope."""

    block_size: int
    spare_blocks: int
    seqs: int
    tokens: int
    scored_tokens: int = 256
    rope: str = "default"
    shares: bool = True


WORK = st.builds(
    Work,
    stem=st.integers(0, len(STEMS) - 1),
    shared=st.integers(1, 40),
    tail=st.lists(st.integers(0, 1), max_size=3),
    generated=st.integers(1, 20),
    arrival=st.integers(0, 30),
    abort_at=st.none() | st.integers(0, 60),
    scored=st.sampled_from([False, False, False, True]),
)
SETTING = st.builds(
    Setting,
    block_size=st.integers(1, 8),
    spare_blocks=st.integers(0, 12),
    seqs=st.integers(1, 6),
    tokens=st.integers(1, 64),
    scored_tokens=st.sampled_from([1, 5, 256]),
    rope=st.sampled_from([*ROPES]),
    shares=st.sampled_from([True, True, False]),
)


@dataclass(slots=True)
class Simulation:
    """Runs a scheduler as the engine does, with arithmetic in place of a model, and checks each step."""

    work: dict[str, Work]
    setting: Setting
    pool: BlockPool = field(init=False)
    scheduler: Scheduler = field(init=False)
    sequences: dict[str, Sequence] = field(default_factory=dict)
    outcomes: dict[str, str] = field(default_factory=dict)
    #: What each slot of the cache contains: a token, all before it, and how each is turned.
    slots: dict[tuple[int, int], int] = field(default_factory=dict)
    #: Prompt positions whose logits were computed to score the next token.
    scored: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        setting = self.setting
        lengths = [len(item.prompt) + item.generated for item in self.work.values()]
        longest = max(blocks_for(length, setting.block_size) for length in lengths)
        self.pool = BlockPool(longest + setting.spare_blocks, first=1)
        self.scheduler = Scheduler(
            self.pool,
            block_size=setting.block_size,
            max_num_seqs=setting.seqs,
            max_step_tokens=max(setting.tokens, setting.seqs),
            max_scored_tokens=setting.scored_tokens,
        )

    def run(self) -> None:
        """Until every request has ended; a bound on the steps is what tells starvation."""
        total = sum(len(item.prompt) + item.generated for item in self.work.values())
        for step in range(total * total + 100):
            self.arrivals_and_aborts(step)
            chunks = self.scheduler.schedule()
            self.check_blocks()
            self.check_chunks(chunks)
            self.write(chunks)
            self.read(chunks)
            for chunk in chunks:
                self.advance(chunk)
            if len(self.outcomes) == len(self.work):
                return
        raise AssertionError(f"still unfinished: {sorted(self.work.keys() - self.outcomes.keys())}")

    def arrivals_and_aborts(self, step: int) -> None:
        for name, item in self.work.items():
            if item.arrival == step:
                self.sequences[name] = self.sequence(name, item)
                self.scheduler.add(self.sequences[name])
            if item.abort_at is not None and item.abort_at <= step and name in self.scheduler:
                assert self.scheduler.remove(name) is self.sequences[name]
                self.outcomes[name] = "abort"

    def sequence(self, name: str, item: Work) -> Sequence:
        prompt, rope = item.prompt, ROPES[self.setting.rope]
        base = base_of(rope, HEAD_DIM, len(prompt))
        keys = BlockKeys(self.setting.block_size, base, alike(rope, len(prompt)))
        return Sequence(
            id=name,
            tokens=prompt,
            prompt_len=len(prompt),
            keys=keys if self.setting.shares else None,
            num_scored=0 if item.scored else None,
        )

    def check_blocks(self) -> None:
        """Holders are counted right, nothing is lost, and whoever shares a block found it."""
        pool, scheduler = self.pool, self.scheduler
        tables = [sequence.blocks for sequence in self.sequences.values()]
        assert all(len(set(table)) == len(table) for table in tables)
        holders = Counter(block for table in tables for block in table)
        assert pool._holders == [holders[block] for block in range(1 + pool.num_blocks)]
        assert len(holders) + pool.num_free == pool.num_blocks
        assert 0 not in holders
        writers = Counter(
            block
            for sequence in self.sequences.values()
            for block in sequence.blocks[sequence.num_found // scheduler.block_size :]
        )
        assert all(count == 1 for count in writers.values())
        assert all(not sequence.blocks for sequence in scheduler.waiting.values())

    def check_chunks(self, chunks: list[Chunk]) -> None:
        scheduler, size = self.scheduler, self.scheduler.block_size
        assert len(scheduler.running) <= scheduler.max_num_seqs
        assert sum(chunk.num_tokens for chunk in chunks) <= scheduler.max_step_tokens
        assert bool(chunks) == bool(scheduler.running) == bool(scheduler.running or scheduler.waiting)
        assert len({chunk.sequence.id for chunk in chunks}) == len(chunks)
        for chunk in chunks:
            sequence = chunk.sequence
            assert sequence.id in scheduler.running
            assert 0 < chunk.num_tokens <= sequence.num_pending
            assert chunk.samples == (chunk.num_tokens == sequence.num_pending)
            assert sequence.num_found % size == 0
            assert min(sequence.num_found, len(sequence.tokens) - 1) <= sequence.num_computed
            assert len(sequence.blocks) >= blocks_for(sequence.num_computed + chunk.num_tokens, size)
            if sequence.num_scored is not None:
                assert chunk.num_tokens <= scheduler.max_scored_tokens
        if scheduler.running:
            assert chunks[0].sequence is next(iter(scheduler.running.values()))

    def contents(self, sequence: Sequence, end: int) -> list[int]:
        """What the cache is to contain for each of the first `end` tokens."""
        positions = np.arange(end, dtype=np.int32)
        lengths = np.full(end, sequence.prompt_len, np.int32)
        bases = token_bases(ROPES[self.setting.rope], HEAD_DIM, positions, lengths).tolist()
        turned = zip(sequence.tokens[:end], bases, strict=True)
        return [*accumulate(turned, lambda before, own: hash((before, own)), initial=0)][1:]

    def write(self, chunks: list[Chunk]) -> None:
        """All that a step computes is written before any of it is read, as in a layer of the decoder."""
        size = self.scheduler.block_size
        written = set()
        for chunk in chunks:
            sequence = chunk.sequence
            end = sequence.num_computed + chunk.num_tokens
            contents = self.contents(sequence, end)
            for position in range(max(sequence.num_computed, sequence.num_found), end):
                slot = sequence.blocks[position // size], position % size
                assert slot not in written
                written.add(slot)
                self.slots[slot] = contents[position]

    def read(self, chunks: list[Chunk]) -> None:
        size = self.scheduler.block_size
        for chunk in chunks:
            sequence = chunk.sequence
            expected = self.contents(sequence, sequence.num_computed + chunk.num_tokens)
            for position, content in enumerate(expected):
                assert self.slots[sequence.blocks[position // size], position % size] == content

    def advance(self, chunk: Chunk) -> None:
        sequence, samples = chunk.sequence, chunk.samples
        rows = chunk.logit_positions
        end = sequence.num_computed + chunk.num_tokens
        assert (end - 1 in rows) >= samples
        assert all(sequence.num_computed <= row < end for row in rows)
        if sequence.num_scored is None:
            assert len(rows) == samples
        else:
            own = [row for row in rows if row < sequence.prompt_len - 1]
            self.scored.setdefault(sequence.id, []).extend(own)
            sequence.num_scored += len(own)
        sequence.num_computed = end
        if samples:
            sequence.tokens.append(sum(sequence.tokens) % 3)
            if sequence.num_generated == self.work[sequence.id].generated:
                self.scheduler.remove(sequence.id)
                self.outcomes[sequence.id] = "done"


def simulate(work: list[Work], setting: Setting) -> Simulation:
    simulation = Simulation({str(number): item for number, item in enumerate(work)}, setting)
    simulation.run()
    return simulation


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
        assert simulation.sequences[name].num_generated == item.generated
        if item.scored:
            assert simulation.scored[name] == list(range(len(item.prompt) - 1))


def test_the_simulation_meets_what_it_is_for() -> None:
    """Hits, preemptions and reuse of blocks do occur in it, with each rope."""
    work = [
        Work(stem=number % 3, shared=12, tail=[0], generated=20, arrival=number, abort_at=None, scored=False)
        for number in range(12)
    ]
    for rope in ROPES:
        setting = Setting(block_size=4, spare_blocks=3, seqs=4, tokens=16, rope=rope)
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
    keys = BlockKeys(block_size, 1.0, 10**9) if block_size else None
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
