"""Random work for the scheduler, with arithmetic in place of a model, and a check of every step.

The simulation keeps, for each slot of the cache, what was written there, and checks all that a step reads.
Where it plans ahead, a step is computed when the next one is planned; only then its tokens are known.
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
    #: After so many tokens it is over, which is known when the last of them is.
    stops: int | None
    arrival: int
    abort_at: int | None
    scored: bool

    @property
    def prompt(self) -> list[int]:
        return STEMS[self.stem][: self.shared] + self.tail

    @property
    def answered(self) -> int:
        """Tokens that it gets."""
        return min(self.generated, self.stops or self.generated)


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
    ahead: bool = False


WORK = st.builds(
    Work,
    stem=st.integers(0, len(STEMS) - 1),
    shared=st.integers(1, 40),
    tail=st.lists(st.integers(0, 1), max_size=3),
    generated=st.integers(1, 20),
    stops=st.none() | st.integers(1, 20),
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
    ahead=st.booleans(),
)


@dataclass(frozen=True, slots=True)
class Planned:
    """A chunk with what it was planned with, which may be another's when it is computed."""

    chunk: Chunk
    start: int
    num_found: int
    blocks: list[int]

    @property
    def end(self) -> int:
        return self.start + self.chunk.num_tokens


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
        before: list[Planned] = []
        for step in range(total * total + 100):
            self.arrivals_and_aborts(step)
            planned = self.plan()
            self.compute(before)
            before = planned
            if not self.setting.ahead:
                self.compute(before)
                before = []
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
        assert bool(chunks) == bool(scheduler.running)
        assert scheduler.running or scheduler.ending or not scheduler.waiting
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

    def plan(self) -> list[Planned]:
        """The next step, after which each sequence stands as if it were computed."""
        chunks = self.scheduler.schedule()
        self.check_blocks()
        self.check_chunks(chunks)
        planned = [
            Planned(chunk, sequence.num_computed, sequence.num_found, [*sequence.blocks])
            for chunk in chunks
            for sequence in [chunk.sequence]
        ]
        for row, each in enumerate(planned):
            self.advance(each, row)
        return planned

    def advance(self, planned: Planned, row: int) -> None:
        chunk, sequence = planned.chunk, planned.chunk.sequence
        rows = chunk.logit_positions
        assert (planned.end - 1 in rows) >= chunk.samples
        assert all(planned.start <= position < planned.end for position in rows)
        if sequence.num_scored is None:
            assert len(rows) == chunk.samples
        else:
            own = [position for position in rows if position < sequence.prompt_len - 1]
            self.scored.setdefault(sequence.id, []).extend(own)
            sequence.num_scored += len(own)
        sequence.num_computed = planned.end
        if chunk.samples:
            sequence.await_token(row)
            if sequence.num_generated == self.work[sequence.id].generated:
                self.scheduler.end(sequence.id)

    def compute(self, planned: list[Planned]) -> None:
        """All that a step computes is written before any of it is read, as in a layer of the decoder."""
        self.write(planned)
        self.read(planned)
        for each in planned:
            sequence = each.chunk.sequence
            if each.chunk.samples and sequence.id not in self.outcomes:
                self.learn(sequence)

    def write(self, planned: list[Planned]) -> None:
        size = self.scheduler.block_size
        written = set()
        for each in planned:
            contents = self.contents(each.chunk.sequence, each.end)
            for position in range(max(each.start, each.num_found), each.end):
                slot = each.blocks[position // size], position % size
                assert slot not in written
                written.add(slot)
                self.slots[slot] = contents[position]

    def read(self, planned: list[Planned]) -> None:
        size = self.scheduler.block_size
        for each in planned:
            for position, content in enumerate(self.contents(each.chunk.sequence, each.end)):
                assert self.slots[each.blocks[position // size], position % size] == content

    def learn(self, sequence: Sequence) -> None:
        sequence.learn(sum(sequence.tokens[: sequence.num_known]) % 3)
        answered = sequence.num_known - sequence.prompt_len
        if answered == self.work[sequence.id].answered:
            assert self.scheduler.remove(sequence.id) is sequence
            self.outcomes[sequence.id] = "done"


def simulate(work: list[Work], setting: Setting) -> Simulation:
    simulation = Simulation({str(number): item for number, item in enumerate(work)}, setting)
    simulation.run()
    return simulation
