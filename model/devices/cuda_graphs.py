"""Decode steps recorded as CUDA graphs: one for each batch size of a ladder, when a step first needs it.

A step is brought to the recorded one's size by rows that attend to nothing and write nothing. What it reads
lies in one buffer, filled by one copy.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.batch import Batch
from model.devices import DecodeLimits, DecodeRun, StepInputs
from model.devices import cuda_card as card
from model.devices.cuda_attention import ALIGNED, PagedAttention
from model.devices.cuda_kernels.attention import Sequences
from model.devices.ladder import rung
from model.transfer import upload

#: Vectors before the block tables in the buffer: tokens, positions, rope bases, contexts, slots.
_VECTORS = 5


class DecodeGraphs:
    """See `RecordsDecode`."""

    def __init__(self, run: DecodeRun, limits: DecodeLimits, where: torch.device) -> None:
        self._run = run
        self._limits = limits
        self._where = where
        self._recorder = card.Recorder()
        self._recorded: dict[int, _Recorded] = {}

    def __call__(self, batch: Batch, bases: NDArray[np.float32]) -> Tensor:
        """Replay the step: what `run` gives for the batch's rows, good until the next call."""
        size = rung(len(batch.token_ids), self._limits.rows)
        recorded = self._recorded.get(size)
        if recorded is None:
            recorded = self._recorded[size] = self._record(size)
        recorded.fill(batch, bases, self._limits.block_size)
        recorded.replay()
        return recorded.result[: len(batch.token_ids)]

    def _record(self, rows: int) -> "_Recorded":
        stride = -(-rows // ALIGNED) * ALIGNED
        buffer = torch.zeros(
            ((_VECTORS + self._limits.blocks), stride), dtype=torch.int32, device=self._where
        )
        buffer[4] = -1
        tokens, positions, bases, contexts, slots = buffer[:_VECTORS, :rows]
        numbers = torch.arange(rows + 1, dtype=torch.int32, device=self._where)
        nothing = numbers[:0]
        attend = PagedAttention(
            # The tables stand on their side, so that those of short sequences end early in the buffer.
            sequences=Sequences(query_starts=numbers, contexts=contexts, tables=buffer[_VECTORS:, :rows].T),
            slots=slots,
            decodes=(numbers[:rows], torch.zeros_like(numbers[:rows])),
            chunks=(nothing, nothing),
            chunk_rows=0,
            processors=card.processors(),
        )
        step = StepInputs(tokens, positions, bases.view(torch.float32), attend)
        replay, result = self._recorder.record(lambda: self._run(step))
        return _Recorded(buffer=buffer, replay=replay, result=result)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recorded:
    """A decode step of one size."""

    #: [vectors + blocks, rows and some more]
    buffer: Tensor
    replay: card.Replay
    #: [rows, hidden_size]
    result: Tensor

    def fill(self, batch: Batch, bases: NDArray[np.float32], block_size: int) -> None:
        """Have the next replay compute this batch."""
        rows, width = batch.block_tables.shape
        packed = np.zeros((_VECTORS + width, self.buffer.shape[1]), np.int32)
        packed[4] = -1
        packed[:_VECTORS, :rows] = (
            batch.token_ids,
            batch.positions,
            bases.view(np.int32),
            batch.context_lens,
            batch.attention_metadata(block_size).slot_mapping,
        )
        packed[_VECTORS:, :rows] = batch.block_tables.T
        self.buffer[: _VECTORS + width].copy_(upload(packed, self.buffer.device))
