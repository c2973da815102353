"""Calls of what graphs need, and of the 310P's public operations, as in calls.py."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from model.devices import LayerCache, npu_graph_ops, npu_ops, npu_public_ops
from tests.npu.calls import (
    CONTEXTS,
    DIM,
    HEADS,
    KV_HEADS,
    QUERIES,
    TABLE,
    Arguments,
    Call,
    Change,
    all_attended,
    attended,
    cache,
    draw,
    fused,
    strided,
    to,
    wider,
)


def workspace_of(**given: Any) -> Tensor:
    return npu_graph_ops.fused_workspace(npu_ops.fused_arguments(**given))


def attended_into(
    *, sums: Tensor | None = None, out: Tensor | None = None, cache: LayerCache | None = None, **given: Any
) -> Tensor:
    """As a graph calls it: with memory for the result and its scratch."""
    arguments = npu_ops.fused_arguments(**given)
    query = given["query"]
    out = torch.empty_like(query) if out is None else out
    sums = torch.empty(0, dtype=torch.float32, device=query.device) if sums is None else sums
    own = LayerCache(given["key"], given["value"]) if cache is None else cache
    npu_graph_ops.fused_attention_into(arguments, own, npu_graph_ops.fused_workspace(arguments), out, sums)
    return out


def decoded(dtype: torch.dtype) -> Arguments:
    keys, values = cache(dtype, nz=False)
    return {
        "query": draw(len(CONTEXTS), HEADS, DIM, dtype=dtype),
        "keys": keys,
        "values": values,
        "kv_heads": KV_HEADS,
        "tables": torch.tensor(TABLE, dtype=torch.int32),
        "lengths": list(CONTEXTS),
    }


def prompt(dtype: torch.dtype) -> Arguments:
    query = draw(64, HEADS, DIM, dtype=dtype)
    key = query.flip(1).contiguous()
    return {
        "query": query,
        "key": key,
        "value": key.flip(0).contiguous(),
        "mask": torch.ones(64, 64, dtype=torch.bool).triu(1),
    }


CALLS: Mapping[str, Call] = {
    "npu_fused_infer_attention_score out": Call(
        attended_into,
        fused,
        lambda given: all_attended(given["query"], given["key"], given["value"], QUERIES),
    ),
    "_npu_fused_infer_attention_score_get_max_workspace": Call(
        workspace_of, fused, lambda given: given["query"].new_zeros(64)
    ),
    "npu_incre_flash_attention": Call(
        npu_public_ops.decode_attention,
        decoded,
        lambda given: all_attended(given["query"], given["keys"], given["values"], [1, 1, 1]),
    ),
    "npu_prompt_flash_attention": Call(
        npu_public_ops.prompt_attention,
        prompt,
        lambda given: attended(given["query"], given["key"], given["value"]),
    ),
}


def result(change: Any) -> Change:
    """A place for the result that is the query changed."""
    return lambda given: {**given, "out": change(given["query"])}


def other(**arguments: Any) -> Change:
    return lambda given: {**given, **arguments}


def all_of(change: Any) -> Change:
    """The query, the key and the value changed."""
    return lambda given: {**given, **{name: change(given[name]) for name in ("query", "key", "value")}}


def pages_of_24(given: Arguments) -> Arguments:
    return {**given, **{name: given[name][:, :24].contiguous() for name in ("keys", "values")}}


def shorter_cache(given: Arguments) -> Arguments:
    return {**given, "cache": LayerCache(given["key"][1:], given["value"][1:])}


WRONG: Mapping[str, list[tuple[str, Change, str]]] = {
    "npu_fused_infer_attention_score out": [
        ("a result of another shape", result(lambda query: query[1:]), "do not go to"),
        ("a result of another dtype", result(wider), "several dtypes"),
        ("a result that is not contiguous", result(strided), "not contiguous"),
        ("a place for the sums", other(sums=torch.zeros(1)), "what is not wanted"),
        ("sums of another dtype", other(sums=torch.zeros(0).half()), "what is not wanted"),
        ("a cache of another shape", shorter_cache, "was checked"),
    ],
    "_npu_fused_infer_attention_score_get_max_workspace": [
        ("a table in int64", to("tables", lambda one: one.long()), "block table is"),
        ("key lengths as a tensor", to("key_lengths", torch.tensor), "Python integers"),
    ],
    "npu_incre_flash_attention": [
        ("lengths as a tensor", to("lengths", torch.tensor), "Python integers"),
        ("too few lengths", to("lengths", lambda one: one[:-1]), "one length"),
        ("a length of nothing", to("lengths", lambda one: [0, *one[1:]]), "one length"),
        ("a table in int64", to("tables", lambda one: one.long()), "block table is"),
        ("a table that is too short", to("tables", lambda one: one[:, :1].contiguous()), "too many"),
        ("heads that do not share", to("kv_heads", lambda _: 3), "do not share"),
        ("other keys' heads", to("kv_heads", lambda _: 1), "not the query's"),
        ("a cache of another dtype", to("keys", wider), "several dtypes"),
        ("pages of 24 tokens", pages_of_24, "pages of 24"),
        ("queries that are not contiguous", to("query", strided), "not contiguous"),
        ("257 sequences", to("query", lambda one: one.repeat(86, 1, 1)[:257]), "at most 256"),
    ],
    "npu_prompt_flash_attention": [
        ("fewer heads for keys", to("key", lambda one: one[:, :KV_HEADS].contiguous()), "not alike"),
        ("63 tokens", all_of(lambda one: one[:63].contiguous()), "multiple of 32"),
        ("an additive mask", to("mask", lambda one: one.half()), "the mask is"),
        ("a mask of another size", to("mask", lambda one: one[:, :32].contiguous()), "the mask is"),
        ("heads of 24", all_of(lambda one: one[..., :24].contiguous()), "multiple of 16"),
        ("keys of another dtype", to("key", wider), "several dtypes"),
        ("values that are not contiguous", to("value", strided), "not contiguous"),
    ],
}
