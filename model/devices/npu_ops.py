"""One function for each operation of torch_npu that the engine calls.

Each asserts what the operation's documentation asks for and neither its schema nor its Meta kernel looks at:
the kernel would compute something else, or take the process down. Tables of Ascend's documentation and of
torch_npu 2.13 are where the conditions come from. No function here decides what to call.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from model.devices.npu_checks import allowed, block_table, contiguous, dtypes, heads_share, require
from model.devices.npu_chips import this_chip, torch_npu

#: CANN's number for the format in which 310P wants weights and caches: tiles of 16 rows by 16 columns.
FRACTAL_NZ = 29
#: Side of the causal mask that fused attention reads, whatever the lengths.
FUSED_MASK = 2048
_LONGEST_PAGE = 512
_ROTARY_HEADS = 1000


def rms_norm(x: Tensor, gamma: Tensor, eps: float) -> Tensor:
    """x [..., columns] and gamma [columns] → like x."""
    name = "npu_rms_norm"
    allowed(name)
    dtypes(name, x, gamma)
    require(name, gamma.shape == x.shape[-1:], f"gamma {list(gamma.shape)} is not a row of {list(x.shape)}")
    return torch_npu().npu_rms_norm(x, gamma, eps)[0]  # type: ignore[no-any-return]


def add_rms_norm(x: Tensor, delta: Tensor, gamma: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm of x + delta, and the sum."""
    name = "npu_add_rms_norm"
    allowed(name)
    dtypes(name, x, delta, gamma)
    require(name, x.shape == delta.shape, f"{list(x.shape)} and {list(delta.shape)} differ")
    require(name, gamma.shape == x.shape[-1:], f"gamma {list(gamma.shape)} is not a row of {list(x.shape)}")
    normed, _, total = torch_npu().npu_add_rms_norm(x, delta, gamma, eps)
    return normed, total


def rotary_mul(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """heads [1, tokens, heads, dim], cos and sin [1, tokens, 1, dim] → like heads, turned."""
    name = "npu_rotary_mul"
    allowed(name)
    _rotary(name, heads, cos, sin)
    require(name, heads.shape[2] < _ROTARY_HEADS, f"{heads.shape[2]} heads are too many")
    return torch_npu().npu_rotary_mul(heads, cos, sin, "half")  # type: ignore[no-any-return]


def apply_rotary(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Turn query and key, both [1, tokens, heads, dim], in place; cos and sin [1, tokens, 1, dim]."""
    name = "npu_apply_rotary_pos_emb"
    allowed(name)
    _rotary(name, query, cos, sin)
    _rotary(name, key, cos, sin)
    require(name, query.numel() > 0 and key.numel() > 0, "empty tensors are not allowed")
    torch_npu().npu_apply_rotary_pos_emb(query, key, cos, sin, "BSND", "half")


def turns(head_dim: int) -> bool:
    """Whether the rotary operations take heads of this size."""
    return head_dim in (64, 128)


def _rotary(name: str, heads: Tensor, cos: Tensor, sin: Tensor) -> None:
    dtypes(name, heads, cos, sin)
    contiguous(name, heads, cos, sin)
    require(
        name, heads.dim() == 4 and turns(heads.shape[-1]), f"{list(heads.shape)} is not [1, T, N, 64|128]"
    )
    wanted = (1, heads.shape[1], 1, heads.shape[3])
    for part in (cos, sin):
        require(name, part.shape == wanted, f"cos or sin is {list(part.shape)} and not {list(wanted)}")


def swiglu(gate_up: Tensor) -> Tensor:
    """silu of the first half of the last dimension, times the second."""
    name = "npu_swiglu"
    allowed(name)
    dtypes(name, gate_up)
    require(name, gate_up.shape[-1] % 2 == 0, f"{gate_up.shape[-1]} columns are no two halves")
    return torch_npu().npu_swiglu(gate_up, dim=-1)  # type: ignore[no-any-return]


def to_nz(tensor: Tensor) -> Tensor:
    """The same numbers, int8 or the chip's, in FRACTAL_NZ. Needs torch.npu.config.allow_internal_format."""
    name = "npu_format_cast"
    allowed(name)
    if tensor.dtype != torch.int8:
        dtypes(name, tensor)
    contiguous(name, tensor)
    return torch_npu().npu_format_cast(tensor, FRACTAL_NZ)  # type: ignore[no-any-return]


def scatter_kv(key: Tensor, value: Tensor, keys: Tensor, values: Tensor, slots: Tensor) -> None:
    """Write key and value [tokens, kv_heads, dim] into [pages, page, kv_heads, dim] at slots [tokens].

    No slot may be named twice, which only the caller can know without waiting for the device.
    """
    name = "npu_scatter_pa_kv_cache"
    allowed(name)
    _written(name, key, value, keys, values, slots, (torch.int32, torch.int64))
    require(name, keys.dim() == 4 and keys.shape[2:] == key.shape[1:], "cache and heads do not match")
    # By default it takes the cache to be in FRACTAL_NZ.
    torch_npu().npu_scatter_pa_kv_cache(key, value, keys, values, slots, cache_mode="Norm")


def reshape_and_cache(key: Tensor, value: Tensor, keys: Tensor, values: Tensor, slots: Tensor) -> None:
    """As `scatter_kv`, into 310P's [pages, kv_heads * dim / 16, page, 16]."""
    name = "_npu_reshape_and_cache"
    allowed(name)
    _written(name, key, value, keys, values, slots, (torch.int32,))
    _paged_nz(name, keys, values, key.shape[1], key.shape[2])
    torch_npu()._npu_reshape_and_cache(key, value, keys, values, slots)


def _written(
    name: str,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    slot_dtypes: tuple[torch.dtype, ...],
) -> None:
    dtypes(name, key, value, keys, values)
    contiguous(name, key, value, keys, values, slots)
    require(name, key.dim() == 3 and key.shape == value.shape, "key and value are not alike [T, N, D]")
    require(name, keys.shape == values.shape, "the caches of keys and values differ")
    require(name, slots.dtype in slot_dtypes, f"slots are {slots.dtype}")
    require(name, slots.shape == key.shape[:1], f"{len(slots)} slots for {len(key)} tokens")
    require(name, len(slots) > 0, "empty slots are not allowed")


def fused_arguments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    query_ends: Sequence[int],
    key_lengths: Sequence[int],
    kv_heads: int,
    tables: Tensor | None,
) -> dict[str, Any]:
    """What fused attention is called with: causal, over packed sequences, query [tokens, heads, dim].

    With `tables` [sequences, pages]: key and value are [pages, page, kv_heads, dim] and key_lengths count
    each sequence's keys. Without: [tokens, kv_heads, dim], and key_lengths are ends, like query_ends.
    """
    name = "npu_fused_infer_attention_score"
    allowed(name)
    dtypes(name, query, key, value)
    contiguous(name, query, key, value, mask)
    tokens, heads, dim = query.shape
    require(name, mask.dtype in (torch.int8, torch.bool), f"the mask is {mask.dtype}")
    require(name, mask.shape == (FUSED_MASK, FUSED_MASK), f"the mask is {list(mask.shape)}")
    heads_share(name, heads, kv_heads)
    require(name, dim % 16 == 0, f"head_dim {dim} is no multiple of 16")
    require(name, key.shape == value.shape, "key and value differ")
    require(name, tuple(key.shape[-2:]) == (kv_heads, dim), "the keys' heads are not the query's")
    _lengths(name, query_ends, tokens)
    require(name, len(key_lengths) == len(query_ends), "not as many key lengths as sequences")
    page = 0
    if tables is None:
        _lengths(name, key_lengths, len(key))
    else:
        page = key.shape[1]
        require(
            name,
            page > 0 and page % 128 == 0 and page <= _LONGEST_PAGE,
            f"pages of {page} tokens: 128 to 512",
        )
        require(name, kv_heads * dim < 2**16, f"{kv_heads} heads of {dim} are more than 65535 numbers")
        block_table(name, tables, len(query_ends))
        require(name, tables.shape[1] * page >= max(key_lengths), "a table is shorter than its sequence")
        require(name, all(isinstance(one, int) for one in key_lengths), "key lengths are no Python integers")
        key, value = key.flatten(2), value.flatten(2)
    return {
        "query": query,
        "key": key,
        "value": value,
        "atten_mask": mask,
        "actual_seq_lengths": list(query_ends),
        "actual_seq_lengths_kv": list(key_lengths),
        "block_table": tables,
        "num_heads": heads,
        "num_key_value_heads": kv_heads,
        "scale": dim**-0.5,
        "input_layout": "TND",
        "sparse_mode": 3,
        "block_size": page,
    }


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    query_ends: Sequence[int],
    key_lengths: Sequence[int],
    kv_heads: int,
    tables: Tensor | None,
) -> Tensor:
    """Attention over what `fused_arguments` takes, like the query."""
    given = fused_arguments(query, key, value, mask, query_ends, key_lengths, kv_heads, tables)
    return torch_npu().npu_fused_infer_attention_score(**given)[0]  # type: ignore[no-any-return]


def paged_attention(
    query: Tensor, keys: Tensor, values: Tensor, kv_heads: int, tables: Tensor, lengths: Tensor
) -> Tensor:
    """One token of each sequence against its pages: query [sequences, heads, dim] → the same."""
    name = "_npu_paged_attention"
    allowed(name)
    _paged(name, query, keys, values, kv_heads, tables)
    require(name, lengths.dtype == torch.int32, f"context lengths are {lengths.dtype}")
    require(name, len(lengths) == len(tables) == len(query), "not one length and one table for each query")
    out = torch.empty_like(query)
    torch_npu()._npu_paged_attention(
        query=query,
        key_cache=keys,
        value_cache=values,
        num_kv_heads=kv_heads,
        num_heads=query.shape[1],
        scale_value=query.shape[2] ** -0.5,
        block_table=tables,
        context_lens=lengths,
        out=out,
    )
    return out


def flash_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
    """Causal attention of packed sequences to themselves: [tokens, heads, dim] → the same.

    Tokens are a multiple of 16, and lengths, on the host, add up to them. The mask is additive, float16, in
    FRACTAL_NZ: [1, columns / 16, rows, 16], for the longest sequence.
    """
    name = "_npu_flash_attention"
    allowed(name)
    dtypes(name, query, key, value)
    contiguous(name, query, key, value)
    tokens, heads, dim = query.shape
    require(name, tokens % 16 == 0, f"{tokens} tokens are no multiple of 16")
    require(name, key.shape == value.shape and key.shape[0] == tokens, "keys do not match the queries")
    require(name, key.shape[2] == dim, "the keys' heads are not the query's")
    heads_share(name, heads, key.shape[1])
    _host_lengths(name, lengths)
    require(name, int(lengths.sum()) == tokens, f"lengths add up to {int(lengths.sum())}, not to {tokens}")
    _nz_mask(name, mask, int(lengths.max()), int(lengths.max()))
    out = torch.empty_like(query)
    torch_npu()._npu_flash_attention(
        query=query,
        key=key,
        value=value,
        mask=mask,
        seq_len=lengths,
        scale_value=dim**-0.5,
        num_heads=heads,
        num_kv_heads=key.shape[1],
        out=out,
    )
    return out


def splitfuse_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    kv_heads: int,
    mask: Tensor,
    tables: Tensor,
    query_lengths: Tensor,
    contexts: Tensor,
) -> Tensor:
    """Chunks of sequences against their pages: query [tokens, heads, dim] → the same.

    query_lengths are on the host. The mask has a row for each query and a column for each position.
    """
    name = "_npu_paged_attention_splitfuse"
    allowed(name)
    _paged(name, query, keys, values, kv_heads, tables)
    _host_lengths(name, query_lengths)
    require(name, contexts.dtype == torch.int32, f"context lengths are {contexts.dtype}")
    require(name, len(query_lengths) == len(contexts) == len(tables), "not one of each for each sequence")
    require(name, int(query_lengths.sum()) == len(query), "lengths do not add up to the queries")
    _nz_mask(name, mask, len(query), 1)
    out = torch.empty_like(query)
    torch_npu()._npu_paged_attention_splitfuse(
        query=query,
        key_cache=keys,
        value_cache=values,
        block_table=tables,
        context_lens=contexts,
        mask=mask,
        seq_len=query_lengths,
        num_kv_heads=kv_heads,
        num_heads=query.shape[1],
        scale_value=query.shape[2] ** -0.5,
        out=out,
    )
    return out


def matmul_all_reduce(
    x: Tensor, weight: Tensor, bias: Tensor | None, communicator: str, world: int
) -> Tensor:
    """x [tokens, in] times weight [in, out], plus bias, summed over the ranks of an HCCL communicator."""
    name = "npu_mm_all_reduce_base"
    allowed(name)
    dtypes(name, x, weight, *([] if bias is None else [bias]))
    contiguous(name, x)
    require(name, world in (1, 2, 4, 8), f"{world} ranks: it works with 1, 2, 4 or 8")
    require(name, bool(communicator), "the communicator has no name")
    require(name, x.dim() == weight.dim() == 2, "x and weight are no matrices")
    require(name, x.shape[1] == weight.shape[0], f"{list(x.shape)} times {list(weight.shape)}")
    require(name, x.numel() > 0, "empty tensors are not allowed")
    return torch_npu().npu_mm_all_reduce_base(  # type: ignore[no-any-return]
        x, weight, communicator, reduce_op="sum", bias=bias
    )


def _lengths(name: str, ends: Sequence[int], total: int) -> None:
    """Cumulative, and Python integers: a tensor would be taken for something else."""
    require(name, all(isinstance(end, int) for end in ends), "lengths are no Python integers")
    rising = all(first < last for first, last in zip([0, *ends], ends, strict=False))
    require(name, rising and ends[-1:] == [total], "lengths are not cumulative up to the number of tokens")


def _host_lengths(name: str, lengths: Tensor) -> None:
    require(name, lengths.device.type == "cpu", "lengths are not on the host")
    require(name, lengths.dtype == torch.int32 and lengths.dim() == 1, f"lengths are {lengths.dtype}")


def _nz_mask(name: str, mask: Tensor, rows: int, columns: int) -> None:
    require(name, mask.dtype == torch.float16, f"the mask is {mask.dtype}")
    require(name, mask.dim() == 4 and mask.shape[::3] == (1, 16), f"the mask is {list(mask.shape)}")
    require(name, mask.shape[2] >= rows and mask.shape[1] * 16 >= columns, "the mask is too small")


def _paged_nz(name: str, keys: Tensor, values: Tensor, kv_heads: int, dim: int) -> None:
    require(name, keys.shape == values.shape and keys.dim() == 4, "keys and values are cached differently")
    require(name, keys.shape[3] == 16 and keys.shape[1] * 16 == kv_heads * dim, "the cache is not in NZ")
    page = keys.shape[2]
    require(name, 0 < page <= 128 and page % 16 == 0, f"pages of {page} tokens: 16 to 128")
    require(
        name, page * dim <= this_chip().page_numbers, f"pages of {page} times head_dim {dim} are too large"
    )


def _paged(name: str, query: Tensor, keys: Tensor, values: Tensor, kv_heads: int, tables: Tensor) -> None:
    dtypes(name, query, keys, values)
    contiguous(name, query, keys, values)
    require(name, query.dim() == 3, f"the query is {list(query.shape)}")
    heads_share(name, query.shape[1], kv_heads)
    _paged_nz(name, keys, values, kv_heads, query.shape[2])
    block_table(name, tables, len(tables))
