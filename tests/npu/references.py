"""What each operation of torch_npu that the engine calls is documented to compute, in plain torch.

Written from the documentation that torch_npu carries and not from the engine's own code. Sums are float32.
"""

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

#: By the operation's name with its namespace.
REFERENCES: dict[str, Callable[..., Any]] = {}


def reference(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        REFERENCES[name] = function
        return function

    return register


@reference("npu::npu_rms_norm")
def rms_norm(x: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    wide = x.float()
    rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return (wide * rstd * gamma.float()).to(x.dtype), rstd


@reference("npu::npu_add_rms_norm")
def add_rms_norm(
    x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float = 1e-6
) -> tuple[Tensor, Tensor, Tensor]:
    total = x1 + x2
    normed, rstd = rms_norm(total, gamma, epsilon)
    return normed, rstd, total


@reference("npu::npu_swiglu")
def swiglu(x: Tensor, dim: int = -1) -> Tensor:
    gate, up = x.float().chunk(2, dim)
    return (F.silu(gate) * up).to(x.dtype)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.float().chunk(2, -1)
    return (x.float() * cos.float() + torch.cat((-second, first), -1) * sin.float()).to(x.dtype)


@reference("npu::npu_rotary_mul")
def rotary_mul(
    x: Tensor, cos: Tensor, sin: Tensor, rotary_mode: str = "half", rotate: Tensor | None = None
) -> Tensor:
    assert rotary_mode == "half"
    assert rotate is None
    return _turned(x, cos, sin)


@reference("npu::npu_apply_rotary_pos_emb")
def apply_rotary_pos_emb(
    query: Tensor,
    key: Tensor,
    cos: Tensor,
    sin: Tensor,
    layout: str = "BSND",
    rotary_mode: str = "half",
) -> tuple[Tensor, Tensor]:
    assert (layout, rotary_mode) == ("BSND", "half")
    return query.copy_(_turned(query, cos, sin)), key.copy_(_turned(key, cos, sin))


@reference("npu::npu_format_cast")
def format_cast(x: Tensor, acl_format: int, **_: Any) -> Tensor:
    """The format is how the bytes lie, which no tensor of the host has."""
    return x.clone()


@reference("npu::npu_weight_quant_batchmatmul")
def weight_quant_batchmatmul(
    x: Tensor,
    weight: Tensor,
    antiquant_scale: Tensor,
    antiquant_offset: Tensor | None = None,
    quant_scale: Tensor | None = None,
    quant_offset: Tensor | None = None,
    bias: Tensor | None = None,
    antiquant_group_size: int = 0,
) -> Tensor:
    assert antiquant_offset is quant_scale is quant_offset is None
    assert antiquant_group_size == 0
    product = x.float() @ (weight.float() * antiquant_scale.float())
    return (product if bias is None else product + bias.float()).to(x.dtype)


@reference("npu::npu_dynamic_quant")
def dynamic_quant(x: Tensor, **others: Any) -> tuple[Tensor, Tensor]:
    """scale = rowMax(abs(x)) / 127, y = round(x / scale). Of zeros nothing is said: they stay so."""
    assert not others
    scale = x.float().abs().amax(-1) / 127
    values = torch.where(scale[:, None] > 0, x.float() / scale[:, None], 0)
    return values.round().clamp(-128, 127).to(torch.int8), scale


@reference("npu::npu_quant_matmul")
def quant_matmul(
    x1: Tensor,
    x2: Tensor,
    scale: Tensor,
    *,
    pertoken_scale: Tensor,
    bias: Tensor | None = None,
    output_dtype: int,
    **others: Any,
) -> Tensor:
    assert not others
    # Exact: products of int8 add up to 32 bits.
    sums = (x1.double() @ x2.double()).float()
    product = sums * scale * pertoken_scale[:, None]
    return (product if bias is None else product + bias).to(_SCALAR_TYPES[output_dtype])


#: c10's numbers of dtypes, which is what an operation gets for one.
_SCALAR_TYPES = {5: torch.float16, 6: torch.float32, 15: torch.bfloat16}


@reference("npu::npu_scatter_pa_kv_cache")
def scatter_pa_kv_cache(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    *,
    compress_lens: Tensor | None = None,
    compress_seq_offsets: Tensor | None = None,
    seq_lens: Tensor | None = None,
    cache_mode: str = "PA_NZ",
) -> None:
    assert compress_lens is compress_seq_offsets is seq_lens is None
    assert cache_mode == "Norm"
    assert len(slot_mapping.unique()) == len(slot_mapping), "what is written twice may be either"
    for new, stored in ((key, key_cache), (value, value_cache)):
        stored.view(-1, *stored.shape[2:])[slot_mapping.long()] = new


@reference("atb::_npu_reshape_and_cache")
def reshape_and_cache(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_indices: Tensor
) -> None:
    assert len(slot_indices.unique()) == len(slot_indices), "what is written twice may be either"
    block, offset = slot_indices.long() // _size(key_cache), slot_indices.long() % _size(key_cache)
    for new, stored in ((key, key_cache), (value, value_cache)):
        if _is_nz():
            stored[block, :, offset] = new.reshape(len(new), -1, 16)
        else:
            stored[block, offset] = new


def _is_nz() -> bool:
    """A 310P's cache: [blocks, kv_heads * dim / 16, size, 16], and not [blocks, size, kv_heads, dim]."""
    return "310P" in os.environ["SIM_NPU_SOC"]


def _size(cache: Tensor) -> int:
    return cache.shape[2] if _is_nz() else cache.shape[1]


def _gathered(cache: Tensor, blocks: Tensor, length: int, kv_heads: int) -> Tensor:
    """The first `length` tokens of a sequence, [tokens, kv_heads, head_dim]."""
    own = cache[blocks[: -(-length // _size(cache))].long()]
    tokens = (own.transpose(1, 2) if _is_nz() else own).flatten(0, 1)
    return tokens.reshape(len(tokens), kv_heads, -1)[:length]


def _attend(query: Tensor, key: Tensor, value: Tensor, scale: float, bias: Tensor) -> Tensor:
    """[queries, heads, dim], [keys, kv_heads, dim] and an additive [queries, keys] → like the query."""
    group = query.shape[1] // key.shape[1]
    q, k, v = (part.float().transpose(0, 1) for part in (query, key, value))
    k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
    weights = (q @ k.transpose(1, 2) * scale + bias).softmax(-1)
    return (weights @ v).transpose(0, 1).to(query.dtype)


def _causal(queries: int, keys: int) -> Tensor:
    """Right-aligned: the last query sees all keys."""
    return torch.full((queries, keys), -torch.inf).triu_(1 + keys - queries)


@reference("npu::npu_fused_infer_attention_score")
def fused_infer_attention_score(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    atten_mask: Tensor,
    actual_seq_lengths: list[int],
    actual_seq_lengths_kv: list[int],
    block_table: Tensor | None = None,
    num_heads: int,
    num_key_value_heads: int,
    scale: float,
    input_layout: str,
    sparse_mode: int,
    block_size: int = 0,
    workspace: Tensor | None = None,
    out: list[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    if out is not None:  # into memory that is given, with scratch memory that is large enough
        assert workspace is not None
        assert len(workspace) == len(WORKSPACE)
    assert input_layout == "TND"
    assert sparse_mode == 3
    assert atten_mask[::32, ::32].bool().equal(torch.ones(64, 64).triu(1).bool())
    result = torch.full_like(query, torch.nan) if out is None else out[0]
    start = key_start = 0
    for row, (end, length) in enumerate(zip(actual_seq_lengths, actual_seq_lengths_kv, strict=True)):
        if block_table is None:
            own = [part[key_start:length] for part in (key, value)]
            key_start = length
        else:
            own = [
                part.view(len(part), block_size, num_key_value_heads, -1)[
                    block_table[row, : -(-length // block_size)].long()
                ].flatten(0, 1)[:length]
                for part in (key, value)
            ]
        bias = _causal(end - start, len(own[0]))
        result[start:end] = _attend(query[start:end], own[0], own[1], scale, bias)
        start = end
    return result, torch.empty(0) if out is None else out[1]


@reference("npu::npu_incre_flash_attention")
def incre_flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    actual_seq_lengths: list[int],
    block_table: Tensor,
    num_heads: int,
    scale_value: float,
    input_layout: str = "BSH",
    num_key_value_heads: int,
    block_size: int,
) -> Tensor:
    assert input_layout == "BSH"
    out = torch.full_like(query, torch.nan)
    for row, length in enumerate(actual_seq_lengths):
        used = block_table[row, : -(-length // block_size)].long()
        own = [
            part[used].flatten(0, 1)[:length].view(length, num_key_value_heads, -1) for part in (key, value)
        ]
        heads = query[row].view(1, num_heads, -1)
        out[row] = _attend(heads, own[0], own[1], scale_value, torch.zeros(1, length)).flatten(1)
    return out


@reference("npu::npu_prompt_flash_attention")
def prompt_flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    atten_mask: Tensor,
    num_heads: int,
    scale_value: float,
    next_tokens: int = 0,
    input_layout: str,
    sparse_mode: int = 0,
) -> Tensor:
    """On a 310P: no key heads of their own, no lengths."""
    assert (input_layout, sparse_mode, next_tokens) == ("BSND", 0, 0)
    assert query.shape[2] == key.shape[2] == num_heads
    bias = torch.zeros(atten_mask.shape).masked_fill(atten_mask, -torch.inf)
    return torch.stack([_attend(*own, scale_value, bias) for own in zip(query, key, value, strict=True)])


#: What stands for the scratch memory of fused attention.
WORKSPACE = range(64)


@reference("npu::_npu_fused_infer_attention_score_get_max_workspace")
def fused_infer_attention_score_get_max_workspace(query: Tensor, *_: Any, **__: Any) -> Tensor:
    return query.new_zeros(len(WORKSPACE))


@reference("atb::_npu_paged_attention")
def paged_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    num_kv_heads: int,
    num_heads: int,
    scale_value: float,
    block_table: Tensor,
    context_lens: Tensor,
    out: Tensor,
    *,
    workspace: Tensor | None = None,
) -> None:
    assert query.shape[1] == num_heads
    for row, length in enumerate(context_lens.tolist()):
        key, value = (
            _gathered(part, block_table[row], length, num_kv_heads) for part in (key_cache, value_cache)
        )
        out[row] = _attend(query[row : row + 1], key, value, scale_value, torch.zeros(1, length))[0]


def _unfolded(mask: Tensor) -> Tensor:
    """[1, columns / 16, rows, 16] → [rows, columns]"""
    return mask[0].transpose(0, 1).flatten(1).float()


@reference("atb::_npu_flash_attention")
def flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    seq_len: Tensor,
    scale_value: float,
    num_heads: int,
    num_kv_heads: int,
    out: Tensor,
) -> None:
    assert len(query) % 16 == 0
    assert int(seq_len.sum()) == len(query)
    assert (query.shape[1], key.shape[1]) == (num_heads, num_kv_heads)
    bias, start = _unfolded(mask), 0
    for length in seq_len.tolist():
        own = slice(start, start + length)
        out[own] = _attend(query[own], key[own], value[own], scale_value, bias[:length, :length])
        start += length


@reference("atb::_npu_paged_attention_splitfuse")
def paged_attention_splitfuse(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    mask: Tensor,
    seq_len: Tensor,
    num_kv_heads: int,
    num_heads: int,
    scale_value: float,
    out: Tensor,
) -> None:
    assert query.shape[1] == num_heads
    bias, start = _unfolded(mask), 0
    for row, (length, context) in enumerate(zip(seq_len.tolist(), context_lens.tolist(), strict=True)):
        own = slice(start, start + length)
        key, value = (
            _gathered(part, block_table[row], context, num_kv_heads) for part in (key_cache, value_cache)
        )
        out[own] = _attend(query[own], key, value, scale_value, bias[own, :context])
        start += length


@reference("npu::npu_mm_all_reduce_base")
def mm_all_reduce_base(
    x1: Tensor, x2: Tensor, hcom: str, *, reduce_op: str = "sum", bias: Tensor | None = None, **_: Any
) -> Tensor:
    assert reduce_op == "sum"
    assert hcom
    product = x1 @ x2 if bias is None else x1 @ x2 + bias
    torch.distributed.all_reduce(product)
    return product
