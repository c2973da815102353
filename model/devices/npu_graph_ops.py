"""Fused attention as a recorded graph needs it: into memory that stays, with a workspace that does.

As in `npu_ops.py`, one function for each operation, which asserts what nothing else looks at.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from model.devices import LayerCache
from model.devices.npu_checks import allowed, contiguous, dtypes, require
from model.devices.npu_chips import torch_npu


def fused_workspace(given: Mapping[str, Any]) -> Tensor:
    """Scratch memory for fused attention of these shapes, whatever the lengths; `npu_ops.fused_arguments`."""
    name = "_npu_fused_infer_attention_score_get_max_workspace"
    allowed(name)
    return torch_npu()._npu_fused_infer_attention_score_get_max_workspace(**given)  # type: ignore[no-any-return]


def fused_attention_into(
    given: Mapping[str, Any], cache: LayerCache, workspace: Tensor, out: Tensor, sums: Tensor
) -> None:
    """Attention with `npu_ops.fused_arguments` of these shapes over a layer's cache; out is like the query.

    The cache is of the shape that was checked with the arguments. `sums`, float32 [0], stays empty.
    """
    name = "npu_fused_infer_attention_score"
    allowed(name)
    query = given["query"]
    dtypes(name, query, out, *cache)
    contiguous(name, out, *cache)
    require(name, out.shape == query.shape, f"{list(query.shape)} do not go to {list(out.shape)}")
    require(name, sums.dtype == torch.float32 and len(sums) == 0, "what is not wanted has a place")
    keys, values = (part.flatten(2) for part in cache)
    for part in (keys, values):
        require(name, part.shape == given["key"].shape, "the cache is not of the shape that was checked")
    torch_npu().npu_fused_infer_attention_score.out(
        **{**given, "key": keys, "value": values}, workspace=workspace, out=[out, sums]
    )
