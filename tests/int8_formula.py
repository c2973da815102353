"""int8 projections by the formula, in float64 on the host: what the NPU's are compared with.

`DEVICE` is the CPU with such projections, to put in the place of a device that has the operations.
`quantized_copy` writes what a checkpoint is once its projections were int8.
"""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from torch import Tensor

from model.devices import Projection, cpu

#: The decoder's projections by the names of each family's checkpoints; the head and the embedding are none.
PROJECTION = re.compile(
    r"layers\.\d+\.(attention\.(wqkv|wo)|feed_forward\.w[123]|self_attn\.[qkvo]_proj|mlp\.\w+_proj)\.weight$"
)
#: Those whose columns are split over the ranks.
SPLIT_BY_COLUMNS = re.compile(r"(wo|o_proj|w2|down_proj)\.weight$")

Matrix = NDArray[np.float32]


def integers(rows: NDArray[np.floating]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Each row's integers, and its scale in float32: its largest magnitude over 127."""
    largest = np.abs(rows.astype(np.float32)).max(1, keepdims=True)
    scale = np.where(largest == 0, np.float32(1), largest / np.float32(127))
    return np.rint(rows.astype(np.float32) / scale), scale


def quantized_copy(folder: Path, target: Path, world: int = 1) -> Path:
    """The checkpoint with each projection quantized, in as many slices as ranks, and multiplied out."""
    shutil.copytree(folder, target)
    tensors = load_file(folder / "model.safetensors")
    for name, weight in tensors.items():
        if PROJECTION.search(name):
            slices = np.split(weight, world if SPLIT_BY_COLUMNS.search(name) else 1, axis=1)
            parts = [values * scale for values, scale in map(integers, slices)]
            tensors[name] = np.concatenate(parts, axis=1).astype(weight.dtype)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def scale_dtype(scheme: str, own: torch.dtype) -> torch.dtype:
    return own if scheme == "w8a16" else torch.float32


def quantized_projection(weight: Tensor, scale: Tensor, bias: Tensor | None, scheme: str) -> Projection:
    matrix = (weight.double() * scale.double()[:, None]).t()

    def multiply(x: Tensor) -> Tensor:
        wide = x.double()
        if scheme == "w8a8":
            values, token_scale = integers(x.float().numpy())
            wide = torch.from_numpy(values).double() * torch.from_numpy(token_scale).double()
        out = wide @ matrix
        return (out if bias is None else out + bias.double()).to(x.dtype)

    return multiply


DEVICE = SimpleNamespace(
    **{**vars(cpu), "scale_dtype": scale_dtype, "quantized_projection": quantized_projection}
)
