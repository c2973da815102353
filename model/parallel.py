"""Tensor parallelism: which slice of the model a rank owns, and the few messages between ranks.

Heads, MLP columns and vocabulary rows are split (Megatron-LM, arXiv 1909.08053): two all-reduces a layer.
It never starts or ends a process: that is `ranks.py`.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from model.config import ModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """What rank `rank` of `world` owns of one model."""

    rank: int
    world: int
    #: Query heads [first, last), like all these beyond the model's own where they do not divide.
    heads: tuple[int, int]
    #: Key/value heads [first, last); shared between ranks where there are fewer of them than ranks.
    kv_heads: tuple[int, int]
    #: Columns of the MLP [first, last).
    mlp: tuple[int, int]
    #: Rows of the vocabulary [first, last).
    vocab: tuple[int, int]

    @classmethod
    def of(cls, config: ModelConfig, rank: int, world: int) -> "Shard":
        """Split a model. What does not divide is padded with zeros, which change nothing."""
        group = config.num_heads // config.num_kv_heads
        kv_heads = _padded_kv_heads(config.num_kv_heads, group, world)
        first_kv = rank * kv_heads // world
        return cls(
            rank=rank,
            world=world,
            heads=_part(kv_heads * group, rank, world),
            kv_heads=(first_kv, first_kv + max(1, kv_heads // world)),
            mlp=_part(_rounded_up(config.intermediate_size, world), rank, world),
            vocab=_part(_rounded_up(config.vocab_size, world), rank, world),
        )

    @property
    def num_heads(self) -> int:
        """Query heads of this rank."""
        return self.heads[1] - self.heads[0]

    @property
    def num_kv_heads(self) -> int:
        """Key/value heads of this rank."""
        return self.kv_heads[1] - self.kv_heads[0]


@dataclass(frozen=True, slots=True)
class Group:
    """The ranks as one: collectives over the default process group, which a group of one does without."""

    rank: int = 0
    world: int = 1

    def all_reduce(self, partial: Tensor) -> Tensor:
        """Sum over the ranks, in place."""
        if self.world > 1:
            dist.all_reduce(partial)
        return partial

    def sum_of(self, project: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """The projections of all ranks, added up: by the device in one go where it can and is told to."""
        summed = getattr(project, "summed", None)
        found: Tensor | None = summed(x, self.rank, self.world) if summed and self.world > 1 else None
        return self.all_reduce(project(x)) if found is None else found

    def gather_columns(self, part: Tensor) -> Tensor | None:
        """Rank 0 gets the ranks' [rows, columns] side by side, the others None."""
        if self.world == 1:
            return part
        if part.device.type == "npu":
            return self._all_gather_columns(part)
        parts = [torch.empty_like(part) for _ in range(self.world)] if self.rank == 0 else None
        dist.gather(part, parts, dst=0)
        return torch.cat(parts, dim=-1) if parts else None

    def _all_gather_columns(self, part: Tensor) -> Tensor | None:
        """HCCL has no gather, and what torch_npu does instead sends the shapes through the host each time."""
        parts = [torch.empty_like(part) for _ in range(self.world)]
        dist.all_gather(parts, part)
        return torch.cat(parts, dim=-1) if self.rank == 0 else None

    def share(self, values: Tensor) -> Tensor:
        """Rank 0's values of a tensor on the device. Not every NPU broadcasts: they gather from all."""
        if values.device.type != "npu":
            return self.broadcast(values)
        parts = [torch.empty_like(values) for _ in range(self.world)]
        dist.all_gather(parts, values)
        return parts[0]

    def broadcast(self, values: Tensor) -> Tensor:
        """Every rank gets rank 0's values, in place."""
        if self.world > 1:
            dist.broadcast(values, src=0)
        return values


def _padded_kv_heads(kv_heads: int, group: int, world: int) -> int:
    """So many that each rank gets whole ones, or that as many ranks share each and split its query heads."""

    def divides(count: int) -> bool:
        return count % world == 0 or (world % count == 0 and group % (world // count) == 0)

    return next(count for count in itertools.count(kv_heads) if divides(count))


def _rounded_up(count: int, world: int) -> int:
    return -(-count // world) * world


def _part(total: int, rank: int, world: int) -> tuple[int, int]:
    return rank * total // world, (rank + 1) * total // world
