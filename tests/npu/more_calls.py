"""Calls of what graphs need, right and wrong, as in calls.py; and all of both files together."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from model.devices import LayerCache, npu_graph_ops, npu_ops
from tests.npu import calls
from tests.npu.calls import QUERIES, Arguments, Call, Change, all_attended, fused, strided, to, wider


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


_CALLS: Mapping[str, Call] = {
    "npu_fused_infer_attention_score out": Call(
        attended_into,
        fused,
        lambda given: all_attended(given["query"], given["key"], given["value"], QUERIES),
    ),
    "_npu_fused_infer_attention_score_get_max_workspace": Call(
        workspace_of, fused, lambda given: given["query"].new_zeros(64)
    ),
}


def result(change: Any) -> Change:
    """A place for the result that is the query changed."""
    return lambda given: {**given, "out": change(given["query"])}


def other(**arguments: Any) -> Change:
    return lambda given: {**given, **arguments}


def shorter_cache(given: Arguments) -> Arguments:
    return {**given, "cache": LayerCache(given["key"][1:], given["value"][1:])}


_WRONG: Mapping[str, list[tuple[str, Change, str]]] = {
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
}

CALLS: Mapping[str, Call] = {**calls.CALLS, **_CALLS}
WRONG: Mapping[str, list[tuple[str, Change, str]]] = {**calls.WRONG, **_WRONG}
