"""Blocks of the paged KV cache: how many there are, and which are free. Pure bookkeeping, no tensors.

A block holds the keys and values of `block_size` consecutive tokens of one sequence, in every layer. The
blocks of a sequence, in order, are its block table (PagedAttention, arXiv 2309.06180).
"""

from dataclasses import dataclass

from model.errors import ConfigError


class BlockPool:
    """Hands out block numbers and takes them back, the latest first, so that the used ones lie close."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """`count` free blocks; the caller has looked at `num_free`."""
        taken = self._free[len(self._free) - count :]
        del self._free[len(self._free) - count :]
        return taken[::-1]

    def give_back(self, blocks: list[int]) -> None:
        """Free blocks that were taken."""
        self._free.extend(reversed(blocks))


def blocks_for(num_tokens: int, block_size: int) -> int:
    """Blocks that hold this many tokens."""
    return -(-num_tokens // block_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePlan:
    """How large the cache is and the longest sequence that it serves."""

    num_blocks: int
    max_model_len: int

    @classmethod
    def of(
        cls,
        *,
        block_bytes: int,
        block_size: int,
        budget_bytes: int | None,
        spare_bytes: int,
        max_num_seqs: int,
        max_model_len: int | None,
        model_limit: int,
    ) -> "CachePlan":
        """Settle the size: what all sequences at full length need, within the budget or the spare memory.

        Raises ConfigError if one sequence of the asked length does not fit.
        """
        wanted = blocks_for(max_model_len or model_limit, block_size)
        affordable = (spare_bytes if budget_bytes is None else budget_bytes) // block_bytes
        num_blocks = min(wanted * max_num_seqs, affordable)
        capacity = num_blocks * block_size
        if capacity == 0 or (max_model_len is not None and capacity < max_model_len):
            raise ConfigError(
                f"the KV cache holds {capacity} tokens, fewer than one request of "
                f"{max_model_len or block_size}: raise kv_cache_bytes (a token takes "
                f"{block_bytes // block_size} bytes) or lower max_model_len"
            )
        return cls(num_blocks=num_blocks, max_model_len=max_model_len or min(model_limit, capacity))
