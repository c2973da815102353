"""The CPU's operations in C++: finds the library built for this machine's instructions, and calls it.

What is built, and how, stands in setup.py. The functions are those of the device interface, for tensors as
the decoder has them. A step's attention is cut into pieces here; the C++ does them.
"""

import ctypes
from collections.abc import Callable
from ctypes import c_float, c_int, c_int64, c_void_p
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import numpy as np
import torch  # before the libraries: it brings the OpenMP runtime whose threads they share
from numpy.typing import NDArray
from torch import Tensor

from model.batch import AttentionMetadata
from model.devices import Attend, LayerCache

#: `interface_version` in machine.cpp.
_VERSION = 1
#: `QUERIES` and `MOST_DIM` in prompts.h, `LANES` in vectors.h.
_QUERIES, _MOST_DIM, _LANES = 64, 512, 16
#: Keys of a single token that one thread visits before another may take the next.
_SPAN = 512

_Call = Callable[..., None]

#: What each function is called with. Its name goes on with the dtype.
_ARGUMENTS: dict[str, list[Any]] = {
    "norm": [*[c_void_p] * 3, *[c_int64] * 2, c_float, c_int],
    "add_norm": [*[c_void_p] * 4, *[c_int64] * 2, c_float, c_int],
    "rotate": [*[c_void_p] * 3, *[c_int64] * 4, c_int],
    "gate": [*[c_void_p] * 2, *[c_int64] * 2, c_int],
    "attend": [c_void_p, *[c_void_p, c_int64] * 3, *[c_void_p] * 3],
}


class Kernels:
    """One library's functions for one dtype. Tensors are contiguous, but rows of heads may lie apart."""

    def __init__(self, library: ctypes.CDLL, dtype: torch.dtype) -> None:
        def function(name: str) -> _Call:
            found = library[f"{name}_{str(dtype).removeprefix('torch.')}"]
            found.argtypes, found.restype = _ARGUMENTS[name], None
            return found

        self._norm = function("norm")
        self._add_norm = function("add_norm")
        self._rotate = function("rotate")
        self._gate = function("gate")
        self.attend_step = function("attend")
        self.scratch_bytes = library.scratch_bytes
        self.scratch_bytes.argtypes, self.scratch_bytes.restype = [c_int64] * 2, c_int64

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """RMSNorm of [tokens, columns]."""
        out = torch.empty_like(x)
        self._norm(_address(x), _address(weight), out.data_ptr(), *x.shape, eps, torch.get_num_threads())
        return out

    def add_norm(self, residual: Tensor, delta: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Addition in place, then RMSNorm, of [tokens, columns]."""
        out = torch.empty_like(residual)
        self._add_norm(
            _address(residual), _address(delta), _address(weight), out.data_ptr(),
            *residual.shape, eps, torch.get_num_threads(),
        )  # fmt: skip
        return out

    def rotate(self, heads: Tensor, cos: Tensor, sin: Tensor) -> None:
        """Half-split rotary in place, [tokens, heads, head_dim]."""
        tokens, count, head_dim = heads.shape
        self._rotate(
            heads.data_ptr(), _address(cos), _address(sin),
            tokens, count, head_dim // 2, heads.stride(0), torch.get_num_threads(),
        )  # fmt: skip

    def gate(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up of [tokens, 2 * columns]."""
        rows, columns = gate_up.shape
        out = gate_up.new_empty(rows, columns // 2)
        self._gate(_address(gate_up), out.data_ptr(), rows, columns // 2, torch.get_num_threads())
        return out

    def fits(self, group: int, head_dim: int) -> bool:
        """Whether attention of `group` heads to a kv head can be done here."""
        return group <= _QUERIES and head_dim <= _MOST_DIM and head_dim % _LANES == 0

    def attention(self, metadata: AttentionMetadata, heads: int, kv_heads: int, head_dim: int) -> Attend:
        """Prepare one step."""
        return _Attention(self, metadata, heads, kv_heads, head_dim)


class _Step(ctypes.Structure):
    """`Step` in step.h, field by field."""

    _fields_ = (
        *((name, c_int64) for name in ("tokens", "heads", "kv_heads", "head_dim")),
        *((name, c_int64) for name in ("block_size", "table_width")),
        *((name, c_void_p) for name in ("slots", "tables")),
        *((f"{kind}{name}", c_type)
          for name in ("tiles", "spans", "merges")
          for kind, c_type in (("", c_void_p), ("num_", c_int64))),
        *((name, c_void_p) for name in ("scratch", "parts")),
        *((name, c_int64) for name in ("scratch_bytes", "threads")),
    )  # fmt: skip


class _Attention:
    """One step's attention: the work as lists, made once and done in each layer."""

    def __init__(
        self, kernels: Kernels, metadata: AttentionMetadata, heads: int, kv_heads: int, head_dim: int
    ) -> None:
        self._call = kernels.attend_step
        self._width = heads * head_dim
        threads = torch.get_num_threads()
        room = kernels.scratch_bytes(heads, head_dim)
        tiles, (spans, merges) = _tiles(metadata, heads // kv_heads), _spans(metadata)
        tables = np.ascontiguousarray(metadata.block_tables, np.int32)
        slots = np.ascontiguousarray(metadata.slot_mapping, np.int64)
        scratch = torch.empty(threads * room, dtype=torch.uint8)
        parts = torch.empty(int(merges[:, 2].sum()) * heads * (head_dim + 2))
        self._step = _Step(
            len(slots), heads, kv_heads, head_dim, metadata.block_size, tables.shape[1],
            slots.ctypes.data, tables.ctypes.data,
            tiles.ctypes.data, len(tiles), spans.ctypes.data, len(spans), merges.ctypes.data, len(merges),
            scratch.data_ptr(), parts.data_ptr(), room, threads,
        )  # fmt: skip
        #: What the step points to.
        self._kept = (tables, slots, tiles, spans, merges, scratch, parts)
        self._address = ctypes.addressof(self._step)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, cache: LayerCache) -> Tensor:
        """See `Attend`."""
        out = query.new_empty(len(query), self._width)
        self._call(
            self._address,
            query.data_ptr(), query.stride(0), key.data_ptr(), key.stride(0),
            value.data_ptr(), value.stride(0),
            cache.keys.data_ptr(), cache.values.data_ptr(), out.data_ptr(),
        )  # fmt: skip
        return out


def _tiles(metadata: AttentionMetadata, group: int) -> NDArray[np.int32]:
    """`Tile` in step.h, [tiles, 4]: those with the most keys first, so that threads end together."""
    size = _QUERIES // group
    lens = np.diff(metadata.query_starts)
    lens[: metadata.num_decodes] = 0
    sequences, first = _cut(lens, size)
    position = (metadata.context_lens - lens)[sequences] + first
    count = np.minimum(size, lens[sequences] - first)
    tiles = np.stack((sequences, metadata.query_starts[sequences] + first, count, position), 1)
    return np.ascontiguousarray(tiles[np.argsort(-position, kind="stable")], np.int32)


def _spans(metadata: AttentionMetadata) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """`Span` and `Merge` in step.h, [spans, 4] and [merges, 3]."""
    contexts = metadata.context_lens[: metadata.num_decodes]
    sequences, first = _cut(contexts, _SPAN)
    last = np.minimum(first + _SPAN, contexts[sequences])
    split = contexts > _SPAN
    part = np.where(split[sequences], np.cumsum(split[sequences]) - 1, -1)
    rows = np.flatnonzero(split)
    counts = -(-contexts[rows] // _SPAN)
    merges = np.stack((rows, np.cumsum(counts) - counts, counts), 1)
    return (
        np.ascontiguousarray(np.stack((sequences, first, last, part), 1), np.int32),
        np.ascontiguousarray(merges, np.int32),
    )


def _cut(lens: NDArray[Any], size: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Pieces of at most `size`: which of `lens` each is of, and where in it it begins."""
    counts = -(-lens // size)
    owners = np.repeat(np.arange(len(lens)), counts)
    return owners, (np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)) * size


def _address(tensor: Tensor) -> int:
    if not tensor.is_contiguous():
        raise ValueError(f"a kernel needs contiguous rows, not {tuple(tensor.shape)} with {tensor.stride()}")
    return tensor.data_ptr()


def _library(name: str) -> ctypes.CDLL | None:
    path = Path(__file__).with_name(f"_{name}{EXTENSION_SUFFIXES[0]}")
    library = ctypes.CDLL(str(path)) if path.exists() else None
    return library if library and library.interface_version() == _VERSION else None


def instruction_sets() -> list[str]:
    """Those that were built and that this CPU runs, the best first."""
    baseline = _library("baseline")
    if baseline is None:
        return []
    better = [name for name in ("avx512bf16", "avx2") if baseline[f"has_{name}"]() and _library(name)]
    return [*better, "baseline"]


def load(instruction_set: str) -> dict[torch.dtype, Kernels]:
    """The kernels of each dtype that has them."""
    library = _library(instruction_set)
    return {dtype: Kernels(library, dtype) for dtype in (torch.bfloat16, torch.float32)} if library else {}
