"""The scheduler and its blocks under random work: nothing is lost, nobody starves, every step is sound."""

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from model.kv_cache import BlockPool, blocks_for
from model.scheduler import Chunk, Scheduler, Sequence


@dataclass(frozen=True, slots=True)
class Work:
    """One request, the step at which it arrives, and the step at which its caller gives up, if ever."""

    prompt: int
    generated: int
    arrival: int
    abort_at: int | None


BLOCK_SIZE = st.integers(1, 8)
WORK = st.builds(
    Work,
    prompt=st.integers(1, 40),
    generated=st.integers(1, 20),
    arrival=st.integers(0, 30),
    abort_at=st.none() | st.integers(0, 60),
)


class Simulation:
    """Runs a scheduler as the engine does, with arithmetic in place of a model, and checks each step."""

    def __init__(self, work: list[Work], block_size: int, spare_blocks: int, seqs: int, tokens: int) -> None:
        self.work = {str(number): item for number, item in enumerate(work)}
        longest = max(blocks_for(item.prompt + item.generated, block_size) for item in work)
        self.pool = BlockPool(longest + spare_blocks)
        self.scheduler = Scheduler(
            self.pool, block_size=block_size, max_num_seqs=seqs, max_step_tokens=max(tokens, seqs)
        )
        self.sequences: dict[str, Sequence] = {}
        self.outcomes: dict[str, str] = {}

    def run(self) -> None:
        """Until every request has ended; a bound on the steps is what tells starvation."""
        total = sum(item.prompt + item.generated for item in self.work.values())
        for step in range(total * total + 100):
            self.arrivals_and_aborts(step)
            chunks = self.scheduler.schedule()
            self.check(chunks)
            for chunk in chunks:
                self.compute(chunk)
            if len(self.outcomes) == len(self.work):
                return
        raise AssertionError(f"still unfinished: {sorted(self.work.keys() - self.outcomes.keys())}")

    def arrivals_and_aborts(self, step: int) -> None:
        for name, item in self.work.items():
            if item.arrival == step:
                sequence = Sequence(id=name, tokens=[0] * item.prompt, prompt_len=item.prompt)
                self.sequences[name] = sequence
                self.scheduler.add(sequence)
            if item.abort_at is not None and item.abort_at <= step and name in self.scheduler:
                assert self.scheduler.remove(name) is self.sequences[name]
                self.outcomes[name] = "abort"

    def check(self, chunks: list[Chunk]) -> None:
        scheduler, size = self.scheduler, self.scheduler.block_size
        held = [block for sequence in self.sequences.values() for block in sequence.blocks]
        assert len(set(held)) == len(held)
        assert len(held) + self.pool.num_free == self.pool.num_blocks
        assert all(not scheduler.waiting[name].blocks for name in scheduler.waiting)
        assert len(scheduler.running) <= scheduler.max_num_seqs
        assert sum(chunk.num_tokens for chunk in chunks) <= scheduler.max_step_tokens
        assert bool(chunks) == bool(scheduler.running)
        assert len({chunk.sequence.id for chunk in chunks}) == len(chunks)
        for chunk in chunks:
            sequence = chunk.sequence
            assert sequence.id in scheduler.running
            assert 0 < chunk.num_tokens <= sequence.num_pending
            assert len(sequence.blocks) >= blocks_for(sequence.num_computed + chunk.num_tokens, size)
        if scheduler.running:
            assert chunks[0].sequence is next(iter(scheduler.running.values()))

    def compute(self, chunk: Chunk) -> None:
        sequence, samples = chunk.sequence, chunk.samples
        sequence.num_computed += chunk.num_tokens
        if samples:
            sequence.tokens.append(0)
            if sequence.num_generated == self.work[sequence.id].generated:
                self.scheduler.remove(sequence.id)
                self.outcomes[sequence.id] = "done"


@settings(max_examples=300, deadline=None)
@given(
    work=st.lists(WORK, min_size=1, max_size=12),
    block_size=BLOCK_SIZE,
    spare_blocks=st.integers(0, 12),
    seqs=st.integers(1, 6),
    tokens=st.integers(1, 64),
)
def test_every_request_ends_and_every_block_comes_back(
    work: list[Work], block_size: int, spare_blocks: int, seqs: int, tokens: int
) -> None:
    simulation = Simulation(work, block_size, spare_blocks, seqs, tokens)
    simulation.run()
    assert simulation.pool.num_free == simulation.pool.num_blocks
    for name, item in simulation.work.items():
        if simulation.outcomes[name] == "done":
            assert simulation.sequences[name].num_generated == item.generated
        else:
            assert item.abort_at is not None


def scheduler_of(num_blocks: int, *, block_size: int = 4, seqs: int = 8, tokens: int = 64) -> Scheduler:
    return Scheduler(BlockPool(num_blocks), block_size=block_size, max_num_seqs=seqs, max_step_tokens=tokens)


def sequence_of(name: str, length: int) -> Sequence:
    return Sequence(id=name, tokens=[0] * length, prompt_len=length)


def advance(chunks: list[Chunk]) -> None:
    for chunk in chunks:
        samples = chunk.samples
        chunk.sequence.num_computed += chunk.num_tokens
        if samples:
            chunk.sequence.tokens.append(0)


def test_a_step_mixes_decoded_tokens_with_a_chunk_of_a_prompt() -> None:
    scheduler = scheduler_of(64, tokens=10)
    scheduler.add(sequence_of("first", 4))
    scheduler.add(sequence_of("second", 20))
    plans = []
    for _ in range(4):
        chunks = scheduler.schedule()
        plans.append([(chunk.sequence.id, chunk.num_tokens) for chunk in chunks])
        advance(chunks)
    assert plans == [
        [("first", 4), ("second", 6)],
        [("first", 1), ("second", 9)],
        [("first", 1), ("second", 5)],
        [("first", 1), ("second", 1)],
    ]


def test_a_short_cache_preempts_the_newest_which_comes_back_before_later_arrivals() -> None:
    scheduler = scheduler_of(6)
    for name in ("old", "new"):
        scheduler.add(sequence_of(name, 7))
    while not scheduler.num_preemptions:
        advance(scheduler.schedule())
    scheduler.add(sequence_of("later", 1))
    assert list(scheduler.running) == ["old"]
    assert list(scheduler.waiting) == ["new", "later"]
    assert scheduler.waiting["new"].num_computed == 0
    assert scheduler.waiting["new"].num_generated > 0


def test_a_step_costs_the_same_whatever_waits() -> None:
    """The waiting are looked at one at a time from the front: with the batch full, not at all."""
    scheduler = scheduler_of(64, seqs=1)
    scheduler.add(sequence_of("running", 4))
    advance(scheduler.schedule())
    looked_at = []

    class Watched(type(scheduler.waiting)):  # type: ignore[misc]
        def __iter__(self) -> object:
            looked_at.append(1)
            return super().__iter__()

    scheduler.waiting = Watched((str(n), sequence_of(str(n), 4)) for n in range(10_000))
    looked_at.clear()
    assert len(scheduler.schedule()) == 1
    assert not looked_at
