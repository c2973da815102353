"""Attention on a 310P without ATB: torch_npu's public operations, under that chip's narrower conditions.

As in `npu_ops.py`, one function for each operation, which asserts what nothing else looks at.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.devices.npu_checks import allowed, block_table, contiguous, dtypes, heads_share, require
from model.devices.npu_chips import torch_npu

#: Sequences of one call.
DECODE_ROWS = 256
#: Queries of a prompt are to be a multiple of this, so that the mask's rows are whole units of 32 bytes.
PROMPT_TILE = 32
_LONGEST = 2**16
_MOST_HEADS = 256
_WIDEST_HEAD = 512


def decode_attention(
    query: Tensor, keys: Tensor, values: Tensor, kv_heads: int, tables: Tensor, lengths: Sequence[int]
) -> Tensor:
    """One token of each sequence against its pages: query [sequences, heads, dim] → the same.

    keys and values [pages, page, kv_heads, dim]; tables [sequences, pages]; each sequence's keys.
    """
    name = "npu_incre_flash_attention"
    allowed(name)
    dtypes(name, query, keys, values)
    contiguous(name, query, keys, values)
    rows, heads, dim = query.shape
    require(name, 0 < rows <= DECODE_ROWS, f"{rows} sequences: at most {DECODE_ROWS}")
    _sizes(name, heads, dim)
    heads_share(name, heads, kv_heads)
    require(name, keys.shape == values.shape, "keys and values are cached differently")
    require(name, tuple(keys.shape[2:]) == (kv_heads, dim), "the keys' heads are not the query's")
    require(name, kv_heads * dim < 2**16, f"{kv_heads} heads of {dim} are more than 65535 numbers")
    page = keys.shape[1]
    require(name, page > 0 and page % 16 == 0, f"pages of {page} tokens: a multiple of 16")
    block_table(name, tables, rows)
    require(name, all(isinstance(one, int) for one in lengths), "lengths are no Python integers")
    require(name, len(lengths) == rows and min(lengths) > 0, "not one length for each query")
    longest = max(lengths)
    require(name, longest <= _LONGEST and tables.shape[1] * page >= longest, f"{longest} keys are too many")
    out: Tensor = torch_npu().npu_incre_flash_attention(
        query.flatten(1)[:, None],
        keys.flatten(2),
        values.flatten(2),
        actual_seq_lengths=list(lengths),
        block_table=tables,
        num_heads=heads,
        num_key_value_heads=kv_heads,
        scale_value=dim**-0.5,
        input_layout="BSH",
        block_size=page,
    )
    return out.view(rows, heads, dim)


def prompt_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Attention of one prompt to itself, query, key and value [tokens, heads, dim], alike → the same.

    The mask [tokens, tokens] is true where a key is not to be seen. The chip takes no lengths, and as many
    heads for keys as for queries.
    """
    name = "npu_prompt_flash_attention"
    allowed(name)
    dtypes(name, query, key, value)
    contiguous(name, query, key, value, mask)
    tokens, heads, dim = query.shape
    require(name, key.shape == value.shape == query.shape, "query, key and value are not alike")
    _sizes(name, heads, dim)
    require(name, tokens % PROMPT_TILE == 0, f"{tokens} tokens are no multiple of {PROMPT_TILE}")
    require(name, 0 < tokens < _LONGEST, f"{tokens} tokens: less than {_LONGEST}")
    require(name, mask.dtype == torch.bool, f"the mask is {mask.dtype}")
    require(name, mask.shape == (tokens, tokens), f"the mask is {list(mask.shape)}")
    out: Tensor = torch_npu().npu_prompt_flash_attention(
        query[None],
        key[None],
        value[None],
        atten_mask=mask,
        num_heads=heads,
        scale_value=dim**-0.5,
        next_tokens=0,
        input_layout="BSND",
        sparse_mode=0,
    )
    return out[0]


def _sizes(name: str, heads: int, dim: int) -> None:
    require(name, heads <= _MOST_HEADS, f"{heads} heads: at most {_MOST_HEADS}")
    require(name, dim % 16 == 0 and dim <= _WIDEST_HEAD, f"head_dim {dim}: a multiple of 16 up to 512")
