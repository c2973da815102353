"""Continuous batching: which sequences run in the next step, with how many tokens and in which blocks.

A step packs decoded tokens and chunks of prompts up to `max_step_tokens`. Sequences are admitted in order of
arrival, with blocks for all their tokens; when the cache runs short the newest running one is preempted: it
gives up its blocks, waits at the front and later recomputes. The oldest is never preempted, so it always
ends. Pure bookkeeping, no tensors.

A sequence takes over the blocks of what its tokens begin with, also those that the same step computes. One
whose beginning is being computed by another, but not in this step, is passed over until it is: the first of
many with a new prefix prefills it for all.

A step can be planned while the one before it runs, so before its tokens are known. A token that is being
sampled stands as a negative number at its sequence's end: -1 - the row that the last step samples it from.
"""

import sys
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from itertools import islice

from model.kv_cache import BlockPool, blocks_for
from model.prefix import BlockKeys

#: Waiting sequences that a step looks at beyond those it could admit: what bounds its cost.
_LOOKAHEAD = 32


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """The tokens of one answer to a request and how far they are computed."""

    id: Hashable
    #: Prompt and generated tokens.
    tokens: list[int]
    prompt_len: int
    #: What its full blocks are found by; None shares nothing.
    keys: BlockKeys | None = None
    #: Prompt tokens whose successor's log-probability is known; None where nobody wants it.
    num_scored: int | None = None
    #: Tokens whose keys and values are in the cache.
    num_computed: int = 0
    #: The block table.
    blocks: list[int] = field(default_factory=list)
    #: Its first tokens, found in the cache when it was last admitted: their keys and values are not written.
    num_found: int = 0
    #: Prompt tokens that the cache spared it when it was first admitted.
    num_cached: int | None = None
    #: Blocks that have told the pool what they contain.
    num_announced: int = 0
    #: Of its last tokens, those that are being sampled.
    num_awaited: int = 0

    @property
    def num_known(self) -> int:
        """Tokens before those that are being sampled."""
        return len(self.tokens) - self.num_awaited

    @property
    def num_pending(self) -> int:
        """Tokens still to compute before the next one can be sampled."""
        return len(self.tokens) - self.num_computed

    @property
    def scoring(self) -> bool:
        """Whether log-probabilities of its prompt are still missing."""
        return self.num_scored is not None and self.num_scored < self.prompt_len - 1

    @property
    def num_generated(self) -> int:
        """Tokens after the prompt, those that are being sampled included."""
        return len(self.tokens) - self.prompt_len

    def await_token(self, row: int) -> None:
        """Its next token is being sampled, from this row of those that the step samples."""
        self.tokens.append(-1 - row)
        self.num_awaited += 1

    def learn(self, token: int) -> None:
        """The first of the tokens that it awaits is there."""
        self.tokens[self.num_known] = token
        self.num_awaited -= 1

    def retract(self) -> None:
        """It went on with a token that is not the one it got: what was computed with that is void."""
        del self.tokens[self.num_known :]
        self.num_awaited = 0
        self.num_computed = min(self.num_computed, len(self.tokens) - 1)


class Chunk:
    """The next `num_tokens` pending tokens of a sequence, computed in one step."""

    __slots__ = ("logit_positions", "num_tokens", "samples", "sequence")

    def __init__(self, sequence: Sequence, num_tokens: int) -> None:
        """Settled when the step is planned, and unchanged while the sequence moves on."""
        start = sequence.num_computed
        end = start + num_tokens
        self.sequence = sequence
        self.num_tokens = num_tokens
        #: Whether it reaches the sequence's last token, so that the next one is sampled.
        self.samples = end == len(sequence.tokens)
        #: Positions whose logits are wanted: those that score a prompt token, and the last if it samples.
        self.logit_positions = range(end - 1 if self.samples else end, end)
        if sequence.scoring:
            last = end if self.samples else min(end, sequence.prompt_len - 1)
            self.logit_positions = range(max(start, sequence.num_scored or 0), last)


@dataclass(slots=True)
class _Room:
    """What a step has room for."""

    tokens: int
    #: Of these, tokens of prompts that are scored.
    scored: int

    def chunk_size(self, sequence: Sequence) -> int:
        """Tokens that it could compute."""
        size = min(sequence.num_pending, self.tokens)
        return min(size, self.scored) if sequence.scoring else size

    def fill(self, sequence: Sequence, num_tokens: int) -> None:
        """Take room for a chunk."""
        self.tokens -= num_tokens
        self.scored -= num_tokens if sequence.scoring else 0


class Scheduler:
    """The waiting and the running. A call's cost goes by the running and admitted, not by the waiting."""

    def __init__(
        self,
        pool: BlockPool,
        *,
        block_size: int,
        max_num_seqs: int,
        max_step_tokens: int,
        max_scored_tokens: int = 256,
        max_model_len: int = sys.maxsize,
    ) -> None:
        """`max_scored_tokens` bounds a step's tokens of prompts that are scored: each of them has logits."""
        self.pool = pool
        self.block_size = block_size
        self.max_num_seqs = max_num_seqs
        self.max_step_tokens = max_step_tokens
        self.max_scored_tokens = max_scored_tokens
        self.max_model_len = max_model_len
        self.waiting: OrderedDict[Hashable, Sequence] = OrderedDict()
        #: In order of admission.
        self.running: OrderedDict[Hashable, Sequence] = OrderedDict()
        #: Those whose last token is being sampled: they hold their blocks until it is known.
        self.ending: dict[Hashable, Sequence] = {}
        self.num_preemptions = 0

    def __contains__(self, sequence_id: Hashable) -> bool:
        return any(sequence_id in held for held in self._held)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; its full length must fit into an empty cache."""
        self.waiting[sequence.id] = sequence

    def remove(self, sequence_id: Hashable) -> Sequence | None:
        """Forget a finished or aborted sequence and free its blocks; None if it is not here."""
        sequence = next((held.pop(sequence_id) for held in self._held if sequence_id in held), None)
        if sequence is not None:
            if sequence.keys is not None:
                self._settle(sequence, sequence.num_computed)
            self._release(sequence)
        return sequence

    def end(self, sequence_id: Hashable) -> None:
        """A running sequence awaits its last token: it is in no further step."""
        self.ending[sequence_id] = self.running.pop(sequence_id)

    def retract(self, sequence: Sequence) -> None:
        """A sequence went on with a wrong token in the step under way: it computes its last one again."""
        sequence.retract()
        if sequence.id in self.ending:
            self.running[sequence.id] = self.ending.pop(sequence.id)

    @property
    def _held(self) -> "tuple[dict[Hashable, Sequence], ...]":
        return self.running, self.waiting, self.ending

    def schedule(self) -> list[Chunk]:
        """The chunks of the next step. Every chunk has its blocks.

        Empty only if there is nothing to run, or nothing before those that are ending give back their blocks.
        """
        chunks: list[Chunk] = []
        room = _Room(self.max_step_tokens, self.max_scored_tokens)
        for sequence in [*self.running.values()]:
            num_tokens = room.chunk_size(sequence)
            if num_tokens == 0:
                continue
            if sequence.id not in self.running or not self._grow(sequence, num_tokens):
                break  # preempted, as are all after it
            room.fill(sequence, num_tokens)
            chunks.append(self._plan(sequence, num_tokens))
        for sequence in self._candidates():
            if room.tokens == 0 or len(self.running) == self.max_num_seqs:
                break
            if room.chunk_size(sequence) == 0:
                continue
            found = self._found(sequence)
            if not all(map(self.pool.is_ready, found)):
                continue  # another is about to compute what this one begins with
            if not self._fits(sequence, found):
                break
            self._admit(sequence, found)
            num_tokens = room.chunk_size(sequence)
            room.fill(sequence, num_tokens)
            chunks.append(self._plan(sequence, num_tokens))
        return chunks

    def _plan(self, sequence: Sequence, num_tokens: int) -> Chunk:
        """Settle on a chunk: what it completes can be found from now on, later in the same step as well."""
        if sequence.keys is not None:
            self._settle(sequence, sequence.num_computed + num_tokens)
        return Chunk(sequence, num_tokens)

    def _settle(self, sequence: Sequence, num_tokens: int) -> None:
        """Tell the pool that the sequence's blocks up to there are computed by the end of a planned step."""
        first = min(sequence.num_announced, sequence.num_computed // self.block_size)
        self._announce(sequence, num_tokens)
        for number in range(first, min(num_tokens // self.block_size, sequence.num_announced)):
            self.pool.settle(sequence.blocks[number])

    def _announce(self, sequence: Sequence, num_tokens: int) -> None:
        """Tell the pool what the sequence's blocks up to there will contain, as far as it is known."""
        assert sequence.keys  # noqa: S101 - callers have looked
        num_tokens = min(num_tokens, sequence.num_known)
        if num_tokens // self.block_size <= sequence.num_announced:
            return
        keys = sequence.keys.up_to(sequence.tokens, num_tokens)
        for number in range(sequence.num_announced, len(keys)):
            self.pool.announce(sequence.blocks[number], keys[number])
        sequence.num_announced = num_tokens // self.block_size

    def _grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Give a sequence blocks for its next tokens, preempting the newest; False if that is itself."""
        while True:
            missing = blocks_for(sequence.num_computed + num_tokens, self.block_size) - len(sequence.blocks)
            if missing <= 0:
                return True
            if missing <= self.pool.num_free:
                sequence.blocks += self.pool.take(missing)
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

    def _candidates(self) -> list[Sequence]:
        """The first of the waiting, as many as could be admitted and some more; none if the batch is full."""
        room = self.max_num_seqs - len(self.running)
        return list(islice(self.waiting.values(), room + _LOOKAHEAD)) if room and self.waiting else []

    def _found(self, sequence: Sequence) -> list[int]:
        """Blocks of others, or of its own former self, that hold the sequence's first tokens."""
        if sequence.keys is None or sequence.num_scored is not None:
            return []
        return self.pool.find(sequence.keys.up_to(sequence.tokens, sequence.num_known))

    def _fits(self, sequence: Sequence, found: list[int]) -> bool:
        """Whether its other blocks are free, leaving each running sequence one to grow into, if any can."""
        missing = blocks_for(len(sequence.tokens), self.block_size) - len(found)
        growing = len(self.running) if self.max_model_len > self.block_size else 0
        return missing + growing <= self.pool.num_free - self.pool.num_unheld(found)

    def _admit(self, sequence: Sequence, found: list[int]) -> None:
        del self.waiting[sequence.id]
        self.pool.hold(found)
        missing = blocks_for(len(sequence.tokens), self.block_size) - len(found)
        sequence.blocks = found + self.pool.take(missing)
        sequence.num_found = len(found) * self.block_size
        # The last token is computed even if it was found: its logits are what is sampled from.
        sequence.num_computed = min(sequence.num_found, len(sequence.tokens) - 1)
        if sequence.num_cached is None:
            sequence.num_cached = sequence.num_computed
        sequence.num_announced = len(found)
        if sequence.keys is not None:
            self._announce(sequence, len(sequence.tokens))
        self.running[sequence.id] = sequence

    def _release(self, sequence: Sequence) -> None:
        self.pool.give_back(sequence.blocks)
        sequence.blocks = []
        sequence.num_computed = sequence.num_found = sequence.num_announced = 0
