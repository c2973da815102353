"""Attention of one sequence by itself, in float64, and the numbers of a step: for tests of devices."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from model.batch import AttentionMetadata


def reference(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention of the last tokens to all: [tokens, heads · width] in float64.

    query: [tokens, heads, width]; key, value: [context, kv heads, width].
    """
    count, context = len(query), len(key)
    mask = torch.ones(count, context, dtype=torch.bool).tril(context - count)
    heads = (part.double().transpose(0, 1) for part in (query, key, value))
    return F.scaled_dot_product_attention(*heads, attn_mask=mask, enable_gqa=True).transpose(0, 1).flatten(1)


def metadata_of(
    lens: Sequence[tuple[int, int]], tables: np.ndarray, slots: Sequence[int], block_size: int
) -> AttentionMetadata:
    """A step of sequences of (tokens in it, tokens in the cache after it), those of one token first."""
    return AttentionMetadata(
        num_decodes=sum(count == 1 for count, _ in lens),
        query_starts=np.cumsum([0, *(count for count, _ in lens)]).astype(np.int32),
        context_lens=np.array([context for _, context in lens], np.int32),
        block_tables=tables,
        slot_mapping=np.array(slots, np.int64),
        block_size=block_size,
    )
