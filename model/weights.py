"""Safetensors on disk → the tensors that one rank needs, read by slices and checked against the config.

Or, to measure a shape without its weights, made-up tensors under the same names. It knows files, names and
shapes; what is done with a tensor is the decoder's.
"""

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.config import ModelConfig
from model.errors import CheckpointError
from model.parallel import Shard

_INDEX = "model.safetensors.index.json"
#: Random values that a RandomCheckpoint's tensors are cut from, and their standard deviation.
_POOL_SIZE = 2**24
_STD = 0.02


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows [first, last) of the tensor called `name`, which has `total` in the checkpoint; zeros beyond."""

    name: str
    first: int
    last: int
    total: int

    @property
    def inside(self) -> tuple[int, int]:
        """The part of [first, last) that the tensor has."""
        return min(self.first, self.total), min(self.last, self.total)


class Checkpoint:
    """The tensors of a model folder by name.

    A file is mapped anew for each read: so only what is read is loaded, and what was copied or packed is not
    held a second time by a mapping that outlives it.
    """

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        """Look at every shard. Raises CheckpointError naming the file that is missing or damaged."""
        self.folder = folder
        self.dtype = dtype
        self._paths: dict[str, Path] = {}
        for path in _shards(folder):
            self._paths.update(dict.fromkeys(_open(path).keys(), path))

    def vector(self, name: str, size: int) -> Tensor:
        """A whole tensor of shape [size]."""
        vector: Tensor = self._slice(name, (size,))[:]
        return vector.to(self.dtype)

    def rows(self, parts: Sequence[Rows], columns: int | None = None) -> Tensor:
        """The parts one under another: [rows, columns], or [rows] of vectors without `columns`."""
        shape = () if columns is None else (columns,)
        pieces = []
        for part in parts:
            view, (first, last) = self._slice(part.name, (part.total, *shape)), part.inside
            zeros = torch.zeros(part.last - part.first - (last - first), *shape, dtype=self.dtype)
            pieces += [view[first:last].to(self.dtype), zeros]
        return torch.cat(pieces)

    def columns(self, name: str, shape: tuple[int, int], first: int, last: int) -> Tensor:
        """Columns [first, last) of a tensor of this shape, zeros beyond it."""
        inside = slice(min(first, shape[1]), min(last, shape[1]))
        part: Tensor = self._slice(name, shape)[:, inside]
        beyond = last - first - part.shape[1]
        part = part.to(self.dtype).contiguous()
        return F.pad(part, (0, beyond)) if beyond else part

    def _slice(self, name: str, shape: tuple[int, ...]) -> Any:
        path = self._paths.get(name)
        if path is None:
            raise CheckpointError(f"{self.folder} has no tensor {name}, which its config.json calls for")
        view = _open(path).get_slice(name)
        if tuple(view.get_shape()) != shape:
            raise CheckpointError(
                f"tensor {name} in {self.folder} has shape {view.get_shape()}, "
                f"but config.json calls for {list(shape)}"
            )
        return view


class RandomCheckpoint:
    """Made-up tensors of any shape, as `Checkpoint` gives them: norms of ones, all else N(0, 0.02²).

    Row r of a tensor is a window into one pool of random values, at a place drawn from the tensor's name and
    r. A slice is thus what the slice of the whole tensor would be on every rank and in every process, and
    filling memory costs about what copying does. Rows are correlated where windows overlap: for measuring,
    not for training.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        pool = torch.empty(_POOL_SIZE).normal_(0, _STD, generator=torch.Generator().manual_seed(0))
        self._pool = pool.to(dtype)

    def vector(self, name: str, size: int) -> Tensor:
        """A norm's weight or a bias, [size]."""
        return torch.ones(size, dtype=self.dtype) if name.endswith(".weight") else self._whole(name, size)

    def rows(self, parts: Sequence[Rows], columns: int | None = None) -> Tensor:
        """The parts one under another: [rows, columns], or [rows] of vectors without `columns`."""
        if columns is None:
            return torch.cat(
                [F.pad(self._whole(p.name, p.total), (0, p.last))[p.first : p.last] for p in parts]
            )
        out = torch.zeros((sum(part.last - part.first for part in parts), columns), dtype=self.dtype)
        done = 0
        for part in parts:
            starts = self._starts(part.name, part.total, columns)[slice(*part.inside)]
            torch.index_select(self._windows(columns), 0, starts, out=out[done : done + len(starts)])
            done += part.last - part.first
        return out

    def columns(self, name: str, shape: tuple[int, int], first: int, last: int) -> Tensor:
        """Columns [first, last) of a tensor of this shape, zeros beyond it."""
        begin, end = min(first, shape[1]), min(last, shape[1])
        inside = self._windows(end - begin).index_select(0, self._starts(name, *shape) + begin)
        return F.pad(inside, (0, last - first - (end - begin)))

    def _whole(self, name: str, size: int) -> Tensor:
        start = int(self._starts(name, 1, size))
        return self._pool[start : start + size].clone()

    def _starts(self, name: str, rows: int, columns: int) -> Tensor:
        """Where in the pool each row of a tensor begins."""
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        return torch.randint(_POOL_SIZE - columns + 1, (rows,), generator=generator)

    def _windows(self, columns: int) -> Tensor:
        """A view of the pool whose row i begins at value i."""
        return self._pool.as_strided((_POOL_SIZE - columns + 1, columns), (1, 1))


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing, though {_INDEX} names it") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or damaged ({error}); copy it again") from None


def _shards(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if not index.exists():
        paths = sorted(folder.glob("*.safetensors"))
        if not paths:
            raise CheckpointError(
                f"{folder} holds no .safetensors; convert the checkpoint with `model convert`"
            )
        return paths
    try:
        return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    except (ValueError, KeyError, AttributeError, TypeError):
        raise CheckpointError(f"{index} is not an index of safetensors; copy it again") from None


def qkv_rows(config: ModelConfig, shard: Shard, layer: int) -> list[Rows]:
    """Where this rank's query, key and value rows of a layer lie, in the order of the merged projection.

    Names come without `.weight` or `.bias`: `Rows` are the same for both.
    """
    names = [name.format(layer) for name in config.family.qkv]
    if len(names) == 1:
        return _packed_rows(names[0], config, shard)
    dim = config.head_dim
    heads = (shard.heads, shard.kv_heads, shard.kv_heads)
    totals = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
    return [
        Rows(name, first * dim, last * dim, total * dim)
        for name, (first, last), total in zip(names, heads, totals, strict=True)
    ]


def _packed_rows(name: str, config: ModelConfig, shard: Shard) -> list[Rows]:
    """InternLM2's wqkv: per kv head its group's query heads, then k, then v."""
    group = config.num_heads // config.num_kv_heads
    dim, stride = config.head_dim, group + 2
    total = config.num_kv_heads * stride * dim

    def head_rows(first: int, count: int = 1) -> Rows:
        return Rows(name, first * dim, (first + count) * dim, total)

    kv_heads = range(*shard.kv_heads)
    per_kv_head = shard.num_heads // shard.num_kv_heads
    offset = shard.heads[0] % group  # inside the group, where ranks share a kv head
    return [
        *(head_rows(kv * stride + offset, per_kv_head) for kv in kv_heads),
        *(head_rows(kv * stride + group) for kv in kv_heads),
        *(head_rows(kv * stride + group + 1) for kv in kv_heads),
    ]
