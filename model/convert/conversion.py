"""One conversion from start to end: open, rearrange, cast, write, seal.

Owns the order of these steps and the summary; each step is another module's.
"""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError

from model.convert import shards, sources, target
from model.convert.checkpoint import Checkpoint, LazyTensor, cast
from model.convert.layouts import as_internlm2, as_stored
from model.errors import ConvertError

Layout = Literal["keep", "internlm2"]
DType = Literal["keep", "bfloat16", "float16", "float32"]
#: Told (bytes done, bytes in all).
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What to make of what. `shard_size` is in bytes."""

    source: Path
    target: Path
    layout: Layout = "keep"
    dtype: DType = "keep"
    shard_size: int = 2_000_000_000
    force: bool = False


def run(conversion: Conversion, progress: Progress) -> dict[str, Any]:
    """Convert, and return a summary that JSON can hold. Raises ModelError."""
    started = time.monotonic()
    if conversion.source.resolve() == conversion.target.resolve():
        raise ConvertError(f"{conversion.target} is the source itself: choose another place")
    description = target.describe(
        conversion.source,
        layout=conversion.layout,
        dtype=conversion.dtype,
        shard_size=conversion.shard_size,
    )
    checkpoint = sources.open_checkpoint(conversion.source)
    checkpoint = as_internlm2(checkpoint) if conversion.layout == "internlm2" else as_stored(checkpoint)
    tensors = _cast(checkpoint, conversion.dtype)
    total = sum(tensor.nbytes for tensor in tensors.values())
    _require_room(conversion.target, total)
    with target.written(conversion.target, force=conversion.force) as folder:
        try:
            count = _write(checkpoint, tensors, folder, conversion.shard_size, _counter(progress, total))
        except (OSError, SafetensorError) as error:
            raise ConvertError(f"{conversion.target} can not be written: {error}") from error
        summary = {
            "architecture": checkpoint.config["architectures"][0],
            "dtype": _name(_dtype(tensors)),
            "parameters": sum(prod(tensor.shape) for tensor in tensors.values()),
            "bytes": total,
            "shards": count,
            "seconds": round(time.monotonic() - started, 2),
        }
        target.seal(folder, description, summary)
    return summary


def _cast(checkpoint: Checkpoint, dtype: DType) -> dict[str, LazyTensor]:
    if dtype == "keep":
        return dict(checkpoint.tensors)
    return {name: cast(tensor, getattr(torch, dtype)) for name, tensor in checkpoint.tensors.items()}


def _write(
    checkpoint: Checkpoint,
    tensors: dict[str, LazyTensor],
    folder: Path,
    shard_size: int,
    advance: Callable[[int], None],
) -> int:
    count = shards.write(tensors, folder, limit=shard_size, advance=advance)
    for name, content in checkpoint.files.items():
        (folder / name).write_bytes(content)
    config = {**checkpoint.config, "torch_dtype": _name(_dtype(tensors))}
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return count


def _dtype(tensors: dict[str, LazyTensor]) -> torch.dtype:
    """The embedding's dtype is the model's."""
    return next(iter(tensors.values())).dtype


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _counter(progress: Progress, total: int) -> Callable[[int], None]:
    done = 0

    def advance(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        progress(done, total)

    return advance


def _require_room(place: Path, needed: int) -> None:
    parent = next(folder for folder in place.absolute().parents if folder.exists())
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise ConvertError(f"{place} needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free there")
