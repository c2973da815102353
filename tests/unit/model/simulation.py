"""Random work for the scheduler, with arithmetic in place of a model, and a check of every step.

The simulation keeps, for each slot of the cache, what was written there, and checks all that a step reads.
"""

from collections import Counter
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
from hypothesis import strategies as st

from model.families import Rope
from model.kv_cache import BlockPool, blocks_for
from model.prefix import BlockKeys
from model.rope import base_of, token_bases
from model.scheduler import Chunk, Scheduler, Sequence

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
        keys = BlockKeys(self.setting.block_size, base)
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
        assert (
            sum(chunk.num_tokens for chunk in chunks if chunk.sequence.scoring) <= scheduler.max_scored_tokens
        )
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
