"""Right calls of each wrapper of npu_ops.py, and wrong ones: data of the checks and of the table in the docs.

A right call has a formula for its result that is neither the wrapper's nor the emulation's. A wrong call is a
right one with something changed, and what the refusal says.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from model.devices import npu_ops

Arguments = dict[str, Any]
HEADS, KV_HEADS, DIM, PAGE = 4, 2, 64, 128
#: Queries of each sequence, and keys, all in the cache.
QUERIES, CONTEXTS = [1, 3, 12], [130, 3, 200]
TABLE = [[3, 1], [0, 0], [2, 4]]
PAGES = 5
COLUMNS = 64


@dataclass(frozen=True)
class Call:
    """A right call. Tensors are made on the host; all but those named stay there until the call."""

    wrapper: Callable[..., Any]
    arguments: Callable[[torch.dtype], Arguments]
    expected: Callable[[Arguments], Any]
    #: What the call changes, by the names of its arguments, if it returns nothing.
    changes: tuple[str, ...] = ()
    on_host: tuple[str, ...] = ()
    #: The results' dtypes where they are not that of the call.
    dtypes: tuple[torch.dtype, ...] | None = None


def draw(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def norm_of(x: Tensor, gamma: Tensor, eps: float) -> Tensor:
    wide = x.double()
    return wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt() * gamma.double()


def turned(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = heads.double().chunk(2, -1)
    half = heads.shape[-1] // 2
    c, s = cos.double()[..., :half], sin.double()[..., :half]
    return torch.cat((first * c - second * s, second * c + first * s), -1)


def rotary(dtype: torch.dtype, **others: int) -> Arguments:
    angles = draw(1, 5, 1, DIM // 2, dtype=torch.float32)
    cos, sin = (torch.cat((part, part), -1).to(dtype) for part in (angles.cos(), angles.sin()))
    heads = {name: draw(1, 5, count, DIM, dtype=dtype) for name, count in others.items()}
    return {**heads, "cos": cos, "sin": sin}


def paged(cache: Tensor, row: int, context: int) -> Tensor:
    """A sequence's keys or values from a cache of either layout, [context, kv_heads, dim]."""
    own = cache[TABLE[row]]
    if cache.shape[1] != PAGE:
        own = own.transpose(1, 2)
    return own.reshape(-1, KV_HEADS, DIM)[:context]


def attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal, aligned at the end, by torch's own attention."""
    tokens, context = len(query), len(key)
    q, k, v = (part.double().transpose(0, 1)[None] for part in (query, key, value))
    mask = torch.ones(tokens, context).tril(context - tokens).bool()
    return F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)[0].transpose(0, 1)


def all_attended(query: Tensor, keys: Tensor, values: Tensor, lengths: list[int]) -> Tensor:
    parts = [
        attended(part, paged(keys, row, CONTEXTS[row]), paged(values, row, CONTEXTS[row]))
        for row, part in enumerate(query.split(lengths))
    ]
    return torch.cat(parts)


def cache(dtype: torch.dtype, *, nz: bool) -> tuple[Tensor, Tensor]:
    shape = (PAGES, KV_HEADS * DIM // 16, PAGE, 16) if nz else (PAGES, PAGE, KV_HEADS, DIM)
    keys = draw(*shape, dtype=dtype)
    return keys, keys.flip(0).contiguous()


def written(dtype: torch.dtype, *, nz: bool) -> Arguments:
    keys, values = cache(dtype, nz=nz)
    key = draw(4, KV_HEADS, DIM, dtype=dtype)
    slots = torch.tensor([131, 0, 639, 5], dtype=torch.int32)
    return {"key": key, "value": key.flip(0).contiguous(), "keys": keys, "values": values, "slots": slots}


def stored(given: Arguments) -> list[Tensor]:
    out = []
    for new, old in ((given["key"], given["keys"]), (given["value"], given["values"])):
        after = old.clone()
        for token, slot in zip(new, given["slots"].tolist(), strict=True):
            page, offset = divmod(slot, PAGE)
            if old.shape[1] == PAGE:
                after[page, offset] = token
            else:
                after[page, :, offset] = token.reshape(-1, 16)
        out.append(after)
    return out


def ends(lengths: list[int]) -> list[int]:
    return torch.tensor(lengths).cumsum(0).tolist()


def fused_mask() -> Tensor:
    return torch.ones(2048, 2048, dtype=torch.int8).triu(1)


def fused(dtype: torch.dtype) -> Arguments:
    keys, values = cache(dtype, nz=False)
    return {
        "query": draw(sum(QUERIES), HEADS, DIM, dtype=dtype),
        "key": keys,
        "value": values,
        "mask": fused_mask(),
        "query_ends": ends(QUERIES),
        "key_lengths": list(CONTEXTS),
        "kv_heads": KV_HEADS,
        "tables": torch.tensor(TABLE, dtype=torch.int32),
    }


def whole(dtype: torch.dtype) -> Arguments:
    """Prompts of 1, 3 and 12 tokens without a past, as they come."""
    key = draw(sum(QUERIES), KV_HEADS, DIM, dtype=dtype)
    query = draw(sum(QUERIES), HEADS, DIM, dtype=dtype)
    return {"query": query, "key": key, "value": key.flip(0).contiguous()}


def whole_attended(given: Arguments) -> Tensor:
    parts = (given[name].split(QUERIES) for name in ("query", "key", "value"))
    return torch.cat([attended(*part) for part in zip(*parts, strict=True)])


def decoded(dtype: torch.dtype) -> Arguments:
    keys, values = cache(dtype, nz=True)
    return {
        "query": draw(len(CONTEXTS), HEADS, DIM, dtype=dtype),
        "keys": keys,
        "values": values,
        "kv_heads": KV_HEADS,
        "tables": torch.tensor(TABLE, dtype=torch.int32),
        "lengths": torch.tensor(CONTEXTS, dtype=torch.int32),
    }


def tiled(mask: Tensor) -> Tensor:
    return mask.reshape(len(mask), -1, 16).transpose(0, 1).contiguous()[None]


def flash(dtype: torch.dtype) -> Arguments:
    mask = torch.full((16, 16), -torch.inf, dtype=torch.float16).triu(1)
    return {**whole(dtype), "mask": tiled(mask), "lengths": torch.tensor(QUERIES, dtype=torch.int32)}


def chunked(dtype: torch.dtype) -> Arguments:
    keys, values = cache(dtype, nz=True)
    positions = torch.cat(
        [torch.arange(end - count, end) for count, end in zip(QUERIES, CONTEXTS, strict=True)]
    )
    hidden = torch.arange(208) > positions[:, None]
    mask = torch.zeros(sum(QUERIES), 208, dtype=torch.float16).masked_fill(hidden, -torch.inf)
    return {
        "query": draw(sum(QUERIES), HEADS, DIM, dtype=dtype),
        "keys": keys,
        "values": values,
        "kv_heads": KV_HEADS,
        "mask": tiled(mask),
        "tables": torch.tensor(TABLE, dtype=torch.int32),
        "query_lengths": torch.tensor(QUERIES, dtype=torch.int32),
        "contexts": torch.tensor(CONTEXTS, dtype=torch.int32),
    }


#: By torch_npu's name of the operation; a second call of the same has a word after it.
CALLS: Mapping[str, Call] = {
    "npu_rms_norm": Call(
        npu_ops.rms_norm,
        lambda dtype: {"x": draw(5, COLUMNS, dtype=dtype), "gamma": draw(COLUMNS, dtype=dtype), "eps": 1e-5},
        lambda given: norm_of(**given),
    ),
    "npu_add_rms_norm": Call(
        npu_ops.add_rms_norm,
        lambda dtype: {
            "x": draw(5, COLUMNS, dtype=dtype),
            "delta": draw(5, COLUMNS, dtype=dtype).flip(0),
            "gamma": draw(COLUMNS, dtype=dtype),
            "eps": 1e-5,
        },
        lambda given: [
            norm_of(given["x"] + given["delta"], given["gamma"], 1e-5),
            given["x"] + given["delta"],
        ],
    ),
    "npu_rotary_mul": Call(
        npu_ops.rotary_mul,
        lambda dtype: rotary(dtype, heads=HEADS),
        lambda given: turned(**given),
    ),
    "npu_apply_rotary_pos_emb": Call(
        npu_ops.apply_rotary,
        lambda dtype: rotary(dtype, query=HEADS, key=KV_HEADS),
        lambda given: [turned(given[name], given["cos"], given["sin"]) for name in ("query", "key")],
        changes=("query", "key"),
    ),
    "npu_swiglu": Call(
        npu_ops.swiglu,
        lambda dtype: {"gate_up": draw(5, 2 * COLUMNS, dtype=dtype)},
        lambda given: F.silu(given["gate_up"].double()[:, :COLUMNS]) * given["gate_up"].double()[:, COLUMNS:],
    ),
    "npu_format_cast": Call(
        npu_ops.to_nz,
        lambda dtype: {"tensor": draw(32, 48, dtype=dtype)},
        lambda given: given["tensor"],
    ),
    "npu_scatter_pa_kv_cache": Call(
        npu_ops.scatter_kv, lambda dtype: written(dtype, nz=False), stored, changes=("keys", "values")
    ),
    "_npu_reshape_and_cache": Call(
        npu_ops.reshape_and_cache, lambda dtype: written(dtype, nz=True), stored, changes=("keys", "values")
    ),
    "npu_fused_infer_attention_score": Call(
        npu_ops.fused_attention,
        fused,
        lambda given: all_attended(given["query"], given["key"], given["value"], QUERIES),
    ),
    "npu_fused_infer_attention_score raw": Call(
        npu_ops.fused_attention,
        lambda dtype: {
            **whole(dtype),
            "mask": fused_mask(),
            "query_ends": ends(QUERIES),
            "key_lengths": ends(QUERIES),
            "kv_heads": KV_HEADS,
            "tables": None,
        },
        whole_attended,
    ),
    "_npu_paged_attention": Call(
        npu_ops.paged_attention,
        decoded,
        lambda given: all_attended(given["query"], given["keys"], given["values"], [1, 1, 1]),
    ),
    "_npu_flash_attention": Call(npu_ops.flash_attention, flash, whole_attended, on_host=("lengths",)),
    "_npu_paged_attention_splitfuse": Call(
        npu_ops.splitfuse_attention,
        chunked,
        lambda given: all_attended(given["query"], given["keys"], given["values"], QUERIES),
        on_host=("query_lengths",),
    ),
}

Change = Callable[[Arguments], Arguments]


def to(name: str, change: Callable[[Any], Any]) -> Change:
    return lambda given: {**given, name: change(given[name])}


def strided(tensor: Tensor) -> Tensor:
    """The same numbers, not contiguous."""
    return torch.stack((tensor, tensor), -1)[..., 0]


def wider(tensor: Tensor) -> Tensor:
    return tensor.double()


#: Operation → what is wrong, how it is made so, and a part of the refusal.
WRONG: Mapping[str, list[tuple[str, Change, str]]] = {
    "npu_rms_norm": [
        ("gamma of another dtype", to("gamma", wider), "several dtypes"),
        ("gamma of another length", to("gamma", lambda one: one[:-1]), "not a row"),
        ("a dtype that the chip has not", lambda given: {n: cast(v) for n, v in given.items()}, "no dtype"),
    ],
    "npu_add_rms_norm": [
        ("delta of another dtype", to("delta", wider), "several dtypes"),
        ("delta of another shape", to("delta", lambda one: one[:-1]), "differ"),
        ("gamma of another length", to("gamma", lambda one: one[:-1]), "not a row"),
    ],
    "npu_rotary_mul": [
        ("half as wide cosines", to("cos", lambda one: one[..., : DIM // 2].contiguous()), "cos or sin"),
        ("heads of another size", to("heads", lambda one: one[..., :32].contiguous()), "64|128"),
        ("heads that are not contiguous", to("heads", strided), "not contiguous"),
        ("sines of another dtype", to("sin", wider), "several dtypes"),
    ],
    "npu_apply_rotary_pos_emb": [
        ("half as wide cosines", to("cos", lambda one: one[..., : DIM // 2].contiguous()), "cos or sin"),
        ("keys of another size", to("key", lambda one: one[..., :32].contiguous()), "64|128"),
        ("no keys", to("key", lambda one: one[:, :, :0].contiguous()), "empty"),
        ("keys that are not contiguous", to("key", strided), "not contiguous"),
    ],
    "npu_swiglu": [
        ("an odd number of columns", to("gate_up", lambda one: one[:, :-1]), "two halves"),
        ("a dtype that the chip has not", to("gate_up", wider), "no dtype"),
    ],
    "npu_format_cast": [
        ("not contiguous", to("tensor", strided), "not contiguous"),
        ("a dtype that the chip has not", to("tensor", wider), "no dtype"),
    ],
    "npu_scatter_pa_kv_cache": [
        ("slots in float", to("slots", lambda one: one.float()), "slots are"),
        ("too few slots", to("slots", lambda one: one[:-1]), "slots for"),
        ("keys that are not contiguous", to("key", strided), "not contiguous"),
        ("a cache of another dtype", to("keys", wider), "several dtypes"),
        ("a cache for other heads", to("keys", lambda one: one[:, :, :1].contiguous()), "differ"),
        ("nothing to write", lambda given: {**given, **none(given)}, "empty slots"),
    ],
    "_npu_reshape_and_cache": [
        ("slots in int64", to("slots", lambda one: one.long()), "slots are"),
        ("too few slots", to("slots", lambda one: one[:-1]), "slots for"),
        ("a cache that is not in NZ", lambda given: {**given, **norm_cache(given)}, "not in NZ"),
        ("pages of 24 tokens", lambda given: {**given, **shorter(given, 24)}, "pages of 24"),
        ("nothing to write", lambda given: {**given, **none(given)}, "empty slots"),
    ],
    "npu_fused_infer_attention_score": [
        ("a table in int64", to("tables", lambda one: one.long()), "block table is"),
        ("keys of another dtype", to("key", wider), "several dtypes"),
        ("heads that do not share", to("kv_heads", lambda _: 3), "do not share"),
        ("other keys' heads", to("kv_heads", lambda _: 1), "not the query's"),
        ("lengths as a tensor", to("query_ends", torch.tensor), "Python integers"),
        ("key lengths as a tensor", to("key_lengths", torch.tensor), "Python integers"),
        ("lengths that are not cumulative", to("query_ends", lambda _: QUERIES), "cumulative"),
        ("a mask of another size", to("mask", lambda one: one[:1024, :1024].contiguous()), "the mask is"),
        ("an additive mask", to("mask", lambda one: one.half()), "the mask is"),
        ("pages of 32 tokens", lambda given: {**given, **short_pages(given)}, "pages of 32"),
        ("a table that is too short", to("tables", lambda one: one[:, :1].contiguous()), "shorter"),
        ("heads of 24", lambda given: {**given, **thin(given)}, "multiple of 16"),
        ("queries that are not contiguous", to("query", strided), "not contiguous"),
    ],
    "_npu_paged_attention": [
        ("lengths in int64", to("lengths", lambda one: one.long()), "context lengths are"),
        ("a table in int64", to("tables", lambda one: one.long()), "block table is"),
        ("heads that do not share", to("kv_heads", lambda _: 3), "do not share"),
        ("a cache that is not in NZ", lambda given: {**given, **norm_cache(given)}, "not in NZ"),
        ("too few lengths", to("lengths", lambda one: one[:-1]), "one length"),
    ],
    "_npu_flash_attention": [
        ("15 tokens", lambda given: {**given, **fifteen(given)}, "multiple of 16"),
        ("lengths that do not add up", to("lengths", lambda one: one - 1), "add up"),
        ("lengths in int64", to("lengths", lambda one: one.long()), "lengths are"),
        ("a mask that is too small", to("mask", lambda one: one[:, :, :8].contiguous()), "too small"),
        ("a mask that is not in NZ", to("mask", lambda one: one[0, 0]), "the mask is"),
        ("a mask of another dtype", to("mask", lambda one: one.to(torch.int8)), "the mask is"),
    ],
    "_npu_paged_attention_splitfuse": [
        ("query lengths in int64", to("query_lengths", lambda one: one.long()), "lengths are"),
        ("contexts in int64", to("contexts", lambda one: one.long()), "context lengths are"),
        ("lengths that do not add up", to("query_lengths", lambda one: one - 1), "add up"),
        ("a mask that is too small", to("mask", lambda one: one[:, :, :8].contiguous()), "too small"),
        ("a table in int64", to("tables", lambda one: one.long()), "block table is"),
    ],
}


def cast(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) else value


def none(given: Arguments) -> Arguments:
    return {name: given[name][:0] for name in ("key", "value", "slots")}


def norm_cache(given: Arguments) -> Arguments:
    return {name: torch.zeros(PAGES, PAGE, KV_HEADS, DIM).to(given[name]) for name in ("keys", "values")}


def shorter(given: Arguments, size: int) -> Arguments:
    return {name: given[name][:, :, :size].contiguous() for name in ("keys", "values")}


def short_pages(given: Arguments) -> Arguments:
    return {name: given[name][:, :32].contiguous() for name in ("key", "value")}


def thin(given: Arguments) -> Arguments:
    return {name: given[name][..., :24].contiguous() for name in ("query", "key", "value")}


def fifteen(given: Arguments) -> Arguments:
    return {name: given[name][:15].contiguous() for name in ("query", "key", "value")}
