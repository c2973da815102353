"""The NPU's operations in plain torch: for what a chip's list, or the installed torch_npu, does not have.

Slower, and right on any device. The cache of its attention is [pages, page, kv_heads, head_dim].
"""

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from torch import Tensor

from model.devices import LayerCache


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm, its sum in float32."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Half-split rotary in place."""
    first, second = heads.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    turned = first * cos - second * sin
    second.copy_(second * cos + first * sin)
    first.copy_(turned)


def gate(gate_up: Tensor) -> Tensor:
    """silu(gate) * up."""
    gates, up = gate_up.chunk(2, dim=-1)
    return F.silu(gates) * up


def dequantized_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """torch's linear over weight int8 [out, in] times scale [out], in the dtype of x."""
    return F.linear(x, (weight * scale[:, None]).to(x.dtype), bias)


def write(key: Tensor, value: Tensor, cache: LayerCache, slots: Tensor) -> None:
    """Keys and values [tokens, kv_heads, head_dim] to their slots, int64."""
    for new, stored in zip((key, value), cache, strict=True):
        stored.view(-1, *stored.shape[2:]).index_copy_(0, slots, new)


def attend(query: Tensor, cache: LayerCache, pages: Tensor, context: int) -> Tensor:
    """The last tokens of one sequence, [tokens, heads, head_dim], to its first `context` keys → the same."""
    tokens, heads, head_dim = query.shape
    keys, values = (stored[pages].flatten(0, 1)[:context].transpose(0, 1) for stored in cache)
    kv_heads = len(keys)
    grouped = query.transpose(0, 1).reshape(kv_heads, -1, head_dim)
    scores = (torch.bmm(grouped, keys.transpose(1, 2)) * head_dim**-0.5).view(heads, tokens, context)
    later = torch.full((tokens, context), -torch.inf, dtype=query.dtype, device=query.device)
    weights = (scores + later.triu_(1 + context - tokens)).float().softmax(-1).to(query.dtype)
    mixed = torch.bmm(weights.view(kv_heads, -1, context), values)
    return mixed.view(heads, tokens, head_dim).transpose(0, 1)
