"""Continuous batching: which sequences run in the next step, with how many tokens and in which blocks.

A step packs decoded tokens and chunks of prompts up to `max_step_tokens`. Sequences are admitted in order of
arrival, with blocks for all their tokens; when the cache runs short the newest running one is preempted: it
gives up its blocks, waits at the front and later recomputes. The oldest is never preempted, so it always
ends. Pure bookkeeping, no tensors.
"""

from collections import OrderedDict
from dataclasses import dataclass, field

from model.kv_cache import BlockPool, blocks_for


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """The tokens of one request and how far they are computed."""

    id: str
    #: Prompt and generated tokens.
    tokens: list[int]
    prompt_len: int
    #: Tokens whose keys and values are in the cache.
    num_computed: int = 0
    #: The block table.
    blocks: list[int] = field(default_factory=list)

    @property
    def num_pending(self) -> int:
        """Tokens still to compute before the next one can be sampled."""
        return len(self.tokens) - self.num_computed

    @property
    def num_generated(self) -> int:
        """Tokens after the prompt."""
        return len(self.tokens) - self.prompt_len


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next `num_tokens` pending tokens of a sequence, computed in one step."""

    sequence: Sequence
    num_tokens: int

    @property
    def samples(self) -> bool:
        """Whether it reaches the sequence's last token, so that the next one is sampled."""
        return self.num_tokens == self.sequence.num_pending


class Scheduler:
    """The waiting and the running. A call's cost goes by the running and admitted, not by the waiting."""

    def __init__(self, pool: BlockPool, *, block_size: int, max_num_seqs: int, max_step_tokens: int) -> None:
        self.pool = pool
        self.block_size = block_size
        self.max_num_seqs = max_num_seqs
        self.max_step_tokens = max_step_tokens
        self.waiting: OrderedDict[str, Sequence] = OrderedDict()
        #: In order of admission.
        self.running: OrderedDict[str, Sequence] = OrderedDict()
        self.num_preemptions = 0

    def __contains__(self, sequence_id: str) -> bool:
        return sequence_id in self.waiting or sequence_id in self.running

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; its full length must fit into an empty cache."""
        self.waiting[sequence.id] = sequence

    def remove(self, sequence_id: str) -> Sequence | None:
        """Forget a finished or aborted sequence and free its blocks; None if it is not here."""
        sequence = self.running.pop(sequence_id, None) or self.waiting.pop(sequence_id, None)
        if sequence is not None:
            self._release(sequence)
        return sequence

    def schedule(self) -> list[Chunk]:
        """The chunks of the next step, empty only if there is nothing to run. Every chunk has its blocks."""
        chunks = []
        budget = self.max_step_tokens
        for sequence in [*self.running.values()]:
            num_tokens = min(sequence.num_pending, budget)
            if sequence.id not in self.running or num_tokens == 0 or not self._grow(sequence, num_tokens):
                break  # preempted, as are all after it; or the step is full
            chunks.append(Chunk(sequence, num_tokens))
            budget -= num_tokens
        while budget > 0 and self._can_admit():
            sequence = self._admit()
            chunks.append(Chunk(sequence, min(sequence.num_pending, budget)))
            budget -= chunks[-1].num_tokens
        return chunks

    def _grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Give a sequence blocks for its next tokens, preempting the newest; False if that is itself."""
        while True:
            missing = blocks_for(sequence.num_computed + num_tokens, self.block_size) - len(sequence.blocks)
            if missing <= self.pool.num_free:
                sequence.blocks += self.pool.take(max(0, missing))
                return True
            if self._preempt_newest() is sequence:
                return False

    def _preempt_newest(self) -> Sequence:
        sequence_id, sequence = self.running.popitem()
        self._release(sequence)
        self.waiting[sequence_id] = sequence
        self.waiting.move_to_end(sequence_id, last=False)
        self.num_preemptions += 1
        return sequence

    def _can_admit(self) -> bool:
        """Whether the first in line fits, leaving each running sequence a block to grow into."""
        if not self.waiting or len(self.running) >= self.max_num_seqs:
            return False
        first = next(iter(self.waiting.values()))
        return blocks_for(len(first.tokens), self.block_size) + len(self.running) <= self.pool.num_free

    def _admit(self) -> Sequence:
        sequence_id, sequence = self.waiting.popitem(last=False)
        sequence.blocks = self.pool.take(blocks_for(len(sequence.tokens), self.block_size))
        self.running[sequence_id] = sequence
        return sequence

    def _release(self, sequence: Sequence) -> None:
        self.pool.give_back(sequence.blocks)
        sequence.blocks = []
        sequence.num_computed = 0
