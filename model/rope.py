"""Rotary position embedding: which base each token turns by, and the cosines and sines of a step.

Formulas: RoFormer (arXiv 2104.09864) in the half-split form, linear interpolation and dynamic NTK as the
original InternLM code has them. The base belongs to the token and not to the batch: a prompt token
stretches by the length of its prompt, a decoded one by its position + 1. So no chunk size and no neighbour
changes a result.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.families import Rope


def token_bases(
    rope: Rope, head_dim: int, positions: NDArray[np.int32], prompt_lens: NDArray[np.int32]
) -> NDArray[np.float32]:
    """The base of each token, [tokens], from its position and the length of the prompt it belongs to."""
    lengths = np.maximum(prompt_lens, positions + 1) if rope.grows else prompt_lens
    return _bases(rope, head_dim, lengths)


def base_of(rope: Rope, head_dim: int, prompt_len: int) -> float:
    """The base of the tokens of a prompt of this length."""
    return float(_bases(rope, head_dim, np.array([prompt_len]))[0])


def _bases(rope: Rope, head_dim: int, lengths: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
    if rope.kind != "dynamic":
        return np.full(len(lengths), rope.theta, np.float32)
    stretch = np.maximum(rope.factor * lengths / rope.max_position - (rope.factor - 1), 1.0)
    stretch[lengths <= rope.max_position] = 1.0
    return (rope.theta * stretch ** (head_dim / (head_dim - 2))).astype(np.float32)


def cos_sin(rope: Rope, head_dim: int, positions: Tensor, bases: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each [tokens, head_dim / 2] in float32, of positions [tokens] and bases [tokens]."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    inverse_frequencies = 1.0 / bases[:, None] ** exponents
    scaled = positions.float() / rope.factor if rope.kind == "linear" else positions.float()
    angles = scaled[:, None] * inverse_frequencies
    return angles.cos(), angles.sin()
