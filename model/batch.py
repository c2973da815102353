"""One step's plan as plain integers: what rank 0 tells the others, and what the kernels read from it.

`Batch` is the least that describes a step; it travels between ranks as one int32 vector. `AttentionMetadata`
and the rest are derived from it on every rank, in the shapes that paged-attention kernels share.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from model.scheduler import Chunk

Ints = NDArray[np.int32]

#: Tokens, sequences, columns of the block table, logit rows.
HEADER_SIZE = 4

#: The block that no sequence has where blocks are shared: a place for what need not be kept.
NULL_BLOCK = 0


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The packed tokens of a step, sequence after sequence, those with a single token first."""

    #: [tokens]; -1 - row for the token that the step before samples from this row, unknown to the host yet.
    token_ids: Ints
    #: Tokens of each sequence in this step, [sequences].
    query_lens: Ints
    #: Its tokens in the cache after this step, [sequences].
    context_lens: Ints
    #: Its original prompt, [sequences]: what dynamic rope goes by.
    prompt_lens: Ints
    #: Its first position whose key and value are written; those before are in the cache, [sequences].
    write_starts: Ints
    #: [sequences, blocks of the longest], zero-padded.
    block_tables: Ints
    #: Positions in `token_ids` whose logits are wanted, [rows].
    logit_rows: Ints

    @classmethod
    def of(cls, chunks: Seq[Chunk], block_size: int) -> "Batch":
        """Pack chunks in the order of `decode_first`."""
        query_lens = np.array([chunk.num_tokens for chunk in chunks], np.int32)
        starts = [chunk.sequence.num_computed for chunk in chunks]
        context_lens = np.array(starts, np.int32) + query_lens
        tables = np.zeros((len(chunks), -(-int(context_lens.max()) // block_size)), np.int32)
        tokens: list[int] = []
        for table, chunk, start, end in zip(tables, chunks, starts, context_lens.tolist(), strict=True):
            blocks = chunk.sequence.blocks[: -(-end // block_size)]
            table[: len(blocks)] = blocks
            tokens += chunk.sequence.tokens[start:end]
        rows = [
            position + offset
            for chunk, offset in zip(chunks, (np.cumsum(query_lens) - context_lens).tolist(), strict=True)
            for position in chunk.logit_positions
        ]
        return cls(
            token_ids=np.array(tokens, np.int32),
            query_lens=query_lens,
            context_lens=context_lens,
            prompt_lens=np.array([chunk.sequence.prompt_len for chunk in chunks], np.int32),
            write_starts=np.array([chunk.sequence.num_found for chunk in chunks], np.int32),
            block_tables=tables,
            logit_rows=np.array(rows, np.int32),
        )

    @property
    def awaits_tokens(self) -> bool:
        """Whether it has tokens that the step before samples."""
        return bool((self.token_ids < 0).any())

    @cached_property
    def query_starts(self) -> Ints:
        """Where each sequence's tokens begin, and the end of the last, [sequences + 1]."""
        return np.concatenate(([0], np.cumsum(self.query_lens))).astype(np.int32)

    @cached_property
    def positions(self) -> Ints:
        """The position of each token in its sequence, [tokens]."""
        first = self.context_lens - self.query_lens
        return np.arange(len(self.token_ids), dtype=np.int32) + np.repeat(
            first - self.query_starts[:-1], self.query_lens
        )

    @cached_property
    def token_prompt_lens(self) -> Ints:
        """The prompt length of each token's sequence, [tokens]."""
        return np.repeat(self.prompt_lens, self.query_lens)

    def attention_metadata(self, block_size: int) -> "AttentionMetadata":
        """What attention needs to know of this step."""
        rows = np.repeat(np.arange(len(self.query_lens)), self.query_lens)
        blocks = self.block_tables[rows, self.positions // block_size].astype(np.int64)
        # What is cached already is others' too: it is written where nobody reads.
        blocks[self.positions < np.repeat(self.write_starts, self.query_lens)] = NULL_BLOCK
        return AttentionMetadata(
            num_decodes=int((self.query_lens == 1).sum()),
            query_starts=self.query_starts,
            context_lens=self.context_lens,
            block_tables=self.block_tables,
            slot_mapping=blocks * block_size + self.positions % block_size,
            block_size=block_size,
        )

    def encode(self) -> tuple[Ints, Ints]:
        """The header, [HEADER_SIZE], and the body, one vector of the length that `body_size` tells."""
        header = (len(self.token_ids), *self.block_tables.shape, len(self.logit_rows))
        parts = (
            self.token_ids,
            self.query_lens,
            self.context_lens,
            self.prompt_lens,
            self.write_starts,
            self.block_tables.ravel(),
            self.logit_rows,
        )
        return np.array(header, np.int32), np.concatenate(parts)

    @staticmethod
    def body_size(header: Ints) -> int:
        """Numbers in the body that belongs to this header."""
        tokens, sequences, width, rows = header.tolist()
        return int(tokens + 4 * sequences + sequences * width + rows)

    @classmethod
    def decode(cls, header: Ints, body: Ints) -> "Batch":
        """The inverse of `encode`."""
        tokens, sequences, width, rows = header.tolist()
        sizes = (tokens, *[sequences] * 4, sequences * width, rows)
        parts = np.split(body, np.cumsum(sizes)[:-1])
        return cls(
            token_ids=parts[0],
            query_lens=parts[1],
            context_lens=parts[2],
            prompt_lens=parts[3],
            write_starts=parts[4],
            block_tables=parts[5].reshape(sequences, width),
            logit_rows=parts[6],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionMetadata:
    """What a paged-attention kernel reads, on the host."""

    #: Sequences with a single token in this step; they come first.
    num_decodes: int
    #: [sequences + 1], also known as query_start_loc.
    query_starts: Ints
    #: Keys of each sequence, those of this step included, [sequences].
    context_lens: Ints
    #: [sequences, blocks]
    block_tables: Ints
    #: Where each token's key and value go, block * block_size + offset, [tokens].
    slot_mapping: NDArray[np.int64]
    block_size: int


def decode_first(chunks: Seq[Chunk]) -> list[Chunk]:
    """Chunks of one token before the others, otherwise in their order."""
    return sorted(chunks, key=lambda chunk: chunk.num_tokens > 1)
