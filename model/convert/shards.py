"""Writes tensors as `model-0000i-of-0000N.safetensors` with their index; at most one shard is in memory.

The names and the index are those of transformers' sharded checkpoints.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from model.convert.checkpoint import LazyTensor


def plan(tensors: Mapping[str, LazyTensor], limit: int) -> list[list[str]]:
    """Cut the tensors, in their order, into shards of at most `limit` bytes; a larger one is alone."""
    shards: list[list[str]] = []
    room = 0
    for name, tensor in tensors.items():
        if not shards or tensor.nbytes > room:
            shards.append([])
            room = limit
        shards[-1].append(name)
        room -= tensor.nbytes
    return shards


def write(
    tensors: Mapping[str, LazyTensor], folder: Path, *, limit: int, advance: Callable[[int], None]
) -> int:
    """Write shards and index into `folder` and return the number of shards.

    `advance` is told the bytes of each tensor as it is read. Raises OSError.
    """
    shards = plan(tensors, limit)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(dict(_read(tensors, names, advance)), folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)  # the library makes it readable by its owner alone
        weight_map |= dict.fromkeys(names, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    return len(shards)


def _read(
    tensors: Mapping[str, LazyTensor], names: list[str], advance: Callable[[int], None]
) -> Iterator[tuple[str, torch.Tensor]]:
    for name in names:
        yield name, tensors[name].read().contiguous()
        advance(tensors[name].nbytes)
