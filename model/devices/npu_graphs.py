"""Decode steps captured as graphs on a 910B: one for each batch size of a ladder, when a step first needs it.

What a step reads lies in one buffer, filled by one copy. Only the lengths of the sequences are integers of
the host: each layer's attention is a task group of the graph, which is told them before every replay, and an
event that the graph waits for says that it was. Not run on a card yet, and off unless NPU_DECODE_GRAPHS=1.
"""

import logging
import os
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.batch import NULL_BLOCK, AttentionMetadata, Batch
from model.devices import (
    Attend,
    DecodeLimits,
    DecodeRun,
    DecodeStep,
    LayerCache,
    StepInputs,
    npu_attention,
    npu_graph_ops,
    npu_ops,
)
from model.devices.ladder import rung
from model.devices.npu_chips import is_available, this_chip, torch_npu
from model.transfer import upload

_LOG = logging.getLogger(__name__)

#: Numbers of a row before the block tables in the buffer: token, position, rope base, slot.
_VECTORS = 4
#: Vectors begin at multiples of so many numbers.
_ALIGNED = 16
#: Each layer of each graph has an event, and a device has so many: a bound that should be on the safe side.
_EVENTS = 1024

Ints = NDArray[np.int32]


def record_decode(run: DecodeRun, limits: DecodeLimits, where: torch.device) -> DecodeStep | None:
    """Decode steps by graphs if NPU_DECODE_GRAPHS=1 asks for them and they can be had, or None."""
    if os.environ.get("NPU_DECODE_GRAPHS", "0") != "1":
        return None
    has_operations = is_available("_npu_fused_infer_attention_score_get_max_workspace")
    if npu_attention.way() != "fused" or not has_operations:
        _LOG.warning("NPU_DECODE_GRAPHS: %s has no graphs here; steps are run one by one", this_chip().name)
        return None
    if os.environ.get("ASCEND_LAUNCH_BLOCKING") == "1":
        _LOG.warning("NPU_DECODE_GRAPHS: ASCEND_LAUNCH_BLOCKING=1 forbids graphs; steps are run one by one")
        return None
    return _DecodeGraphs(run, limits, where)


class _DecodeGraphs:
    """See `RecordsDecode`."""

    def __init__(self, run: DecodeRun, limits: DecodeLimits, where: torch.device) -> None:
        self._run = run
        self._limits = limits
        self._where = where
        self._recorded: dict[int, _Recorded] = {}
        self._pool = _npu().graph_pool_handle()
        self._updates = _npu().Stream()

    def __call__(self, batch: Batch, bases: NDArray[np.float32]) -> Tensor:
        """The step: what `run` gives for the batch's rows, good until the next call."""
        rows = len(batch.token_ids)
        size = rung(rows, self._limits.rows)
        recorded = self._recorded.get(size)
        slots = places(batch.attention_metadata(self._limits.block_size), size, self._limits)
        if slots is None or (recorded is None and self._is_full()):
            return self._run(_plain(batch, bases, self._limits.block_size, self._where))
        if recorded is None:
            return self._record(size, batch, bases, slots)[:rows]
        # What is still running must not be told the next step's lengths.
        _npu().current_stream().synchronize()
        recorded.fill(batch, bases, slots)
        recorded.attention.update(self._updates)
        recorded.graph.replay()
        return recorded.result[:rows]

    def _is_full(self) -> bool:
        """Whether another graph would need more events than there are."""
        layers = [len(recorded.attention.layers) for recorded in self._recorded.values()]
        return sum(layers) + max(layers, default=0) > _EVENTS

    def _record(self, size: int, batch: Batch, bases: NDArray[np.float32], slots: Ints) -> Tensor:
        """Run the batch, which also sets up what can not be captured, then capture it without running it."""
        recorded = _Recorded(size, self._limits, self._where)
        recorded.fill(batch, bases, slots)
        first = self._run(recorded.step)
        recorded.attention.is_captured = True
        with _npu().graph(recorded.graph, pool=self._pool):
            recorded.result = self._run(recorded.step)
        self._recorded[size] = recorded
        return first


class _Recorded:
    """A decode step of one size."""

    def __init__(self, rows: int, limits: DecodeLimits, where: torch.device) -> None:
        self._rows = rows
        self._stride = -(-rows // _ALIGNED) * _ALIGNED
        self._pages = _pages(limits.block_size)
        numbers = _VECTORS * self._stride + rows * limits.blocks * self._pages
        self._buffer = torch.zeros(numbers, dtype=torch.int32, device=where)
        vectors, tables = self._parts(self._buffer)
        self.attention = _Attention(slots=vectors[3], tables=tables)
        self.step = StepInputs(vectors[0], vectors[1], vectors[2].view(torch.float32), self.attention)
        self.graph = _npu().NPUGraph()
        #: [rows, hidden_size], which each replay overwrites.
        self.result = self._buffer[:0]

    def _parts(self, buffer: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens, positions, rope bases and slots, [4, rows]; the tables, [rows, pages]."""
        end = _VECTORS * self._stride
        vectors = buffer[:end].view(_VECTORS, self._stride)[:, : self._rows]
        return vectors, buffer[end:].view(self._rows, -1)

    def fill(self, batch: Batch, bases: NDArray[np.float32], slots: Ints) -> None:
        """Have the next run or replay compute this batch."""
        rows = len(batch.token_ids)
        packed = torch.zeros(self._buffer.shape, dtype=torch.int32)
        vectors, tables = (part.numpy() for part in self._parts(packed))
        vectors[:3, :rows] = batch.token_ids, batch.positions, bases.view(np.int32)
        vectors[3] = slots
        own = npu_attention.in_pages(batch.block_tables, self._pages)
        tables[:rows, : own.shape[1]] = own
        self._buffer.copy_(packed)
        # Rows that fill up see one key of page 0, whatever it is.
        self.attention.contexts = [*batch.context_lens.tolist(), *[1] * (self._rows - rows)]


class _Layer(NamedTuple):
    """One layer's attention in a graph."""

    cache: LayerCache
    #: The graph waits for it before the attention.
    event: Any
    #: What stands for the attention in the graph.
    tasks: Any


class _Memory(NamedTuple):
    """What attention reads and writes besides the cache: one for all layers, as they follow one another."""

    mask: Tensor
    #: [rows, heads, dim]
    query: Tensor
    #: Like the query.
    out: Tensor
    #: A second result, which is not wanted: float32 [0].
    sums: Tensor
    workspace: Tensor


class _Attention:
    """Attention of single tokens over memory that stays: run, then captured, then told other lengths."""

    def __init__(self, *, slots: Tensor, tables: Tensor) -> None:
        self._slots = slots
        self._tables = tables
        self._ends = list(range(1, len(slots) + 1))
        self._memory: _Memory | None = None
        #: Keys of each row in the next run.
        self.contexts: list[int] = []
        self.is_captured = False
        self.layers: list[_Layer] = []

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, cache: LayerCache) -> Tensor:
        """See `Attend`."""
        memory = self._memory = self._memory or self._prepared(query, cache)
        npu_ops.scatter_kv(key.contiguous(), value.contiguous(), *cache, self._slots)
        memory.query.copy_(query)
        if self.is_captured:
            self._capture(memory, cache)
        else:
            self._attend(memory, cache)
        return memory.out.flatten(1)

    def update(self, stream: Any) -> None:
        """Tell every layer of the graph the lengths of its next replay."""
        memory, npu = self._memory, _npu()
        assert memory is not None  # noqa: S101 - it has been run
        given = self._arguments(memory, self.layers[0].cache, self.contexts)
        with npu.stream(stream):
            for layer in self.layers:
                npu.graph_task_update_begin(stream, layer.tasks)
                npu_graph_ops.fused_attention_into(
                    given, layer.cache, memory.workspace, memory.out, memory.sums
                )
                npu.graph_task_update_end(stream)
                layer.event.record(stream)

    def _prepared(self, query: Tensor, cache: LayerCache) -> _Memory:
        """For queries like this, and sequences as long as the tables."""
        sums = torch.empty(0, dtype=torch.float32, device=query.device)
        memory = _Memory(
            mask=npu_attention.fused_mask(query.device),
            query=query.new_empty(query.shape),
            out=query.new_empty(query.shape),
            sums=sums,
            workspace=sums,
        )
        longest = [self._tables.shape[1] * cache.keys.shape[1]] * len(query)
        workspace = npu_graph_ops.fused_workspace(self._arguments(memory, cache, longest))
        return memory._replace(workspace=workspace)

    def _arguments(self, memory: _Memory, cache: LayerCache, contexts: list[int]) -> dict[str, Any]:
        kv_heads = cache.keys.shape[2]
        return npu_ops.fused_arguments(
            memory.query, *cache, memory.mask, self._ends, contexts, kv_heads, self._tables
        )

    def _attend(self, memory: _Memory, cache: LayerCache) -> None:
        given = self._arguments(memory, cache, self.contexts)
        npu_graph_ops.fused_attention_into(given, cache, memory.workspace, memory.out, memory.sums)

    def _capture(self, memory: _Memory, cache: LayerCache) -> None:
        npu = _npu()
        stream, event = npu.current_stream(), npu.ExternalEvent()
        event.wait(stream)
        event.reset(stream)
        npu.graph_task_group_begin(stream)
        self._attend(memory, cache)
        self.layers.append(_Layer(cache, event, npu.graph_task_group_end(stream)))


def places(metadata: AttentionMetadata, size: int, limits: DecodeLimits) -> Ints | None:
    """Where the key and value of each of `size` rows go, no place named twice, or None if that can not be.

    The rows that fill up, and those whose key is cached already, each get a place of their own in the block
    that is nobody's. Where there is none, the batch has to fill the size by itself.
    """
    rows = len(metadata.slot_mapping)
    blocks, offsets = np.divmod(metadata.slot_mapping, limits.block_size)
    span = _pages(limits.block_size) * npu_attention.fused_page(limits.block_size)
    slots = np.zeros(size, np.int32)
    slots[:rows] = blocks * span + offsets
    if not limits.has_null_block:
        return slots if rows == size and len(np.unique(slots)) == size else None
    nowhere = np.ones(size, np.bool_)
    nowhere[:rows] = blocks == NULL_BLOCK
    count = int(nowhere.sum())
    slots[nowhere] = np.arange(count)
    return slots if count <= limits.block_size else None


def _pages(block_size: int) -> int:
    """Pages of a block."""
    return -(-block_size // npu_attention.fused_page(block_size))


def _plain(batch: Batch, bases: NDArray[np.float32], block_size: int, where: torch.device) -> StepInputs:
    """The batch as it is, for a step without a graph."""
    metadata = batch.attention_metadata(block_size)
    prepared: Attend | None = None

    def attend(query: Tensor, key: Tensor, value: Tensor, cache: LayerCache) -> Tensor:
        nonlocal prepared
        prepared = prepared or npu_attention.attention(metadata, cache.keys.shape[2], where)
        return prepared(query, key, value, cache)

    token_ids, positions = upload(batch.token_ids, where), upload(batch.positions, where)
    return StepInputs(token_ids, positions, upload(bases, where), attend)


def _npu() -> Any:
    return torch_npu().npu
