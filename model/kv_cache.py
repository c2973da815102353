"""Blocks of the KV cache: how many there are, who holds each, and what the free ones still contain.

A block holds the keys and values of `block_size` consecutive tokens of one sequence, in every layer. The
blocks of a sequence, in order, are its block table (PagedAttention, arXiv 2309.06180). A full block can be
found again by a key that stands for its tokens and all before them (`prefix.py`). Pure bookkeeping.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from model.errors import ConfigError


class BlockPool:
    """Hands out block numbers and takes them back. A block with contents is reused last, the oldest first."""

    def __init__(self, num_blocks: int, *, first: int = 0) -> None:
        """Blocks `first` to `first + num_blocks - 1`."""
        self.num_blocks = num_blocks
        self._holders = [0] * (first + num_blocks)
        #: Free and without contents, the latest last, so that the used ones lie close together.
        self._blank = list(range(first + num_blocks - 1, first - 1, -1))
        #: Free with contents, the least recently used first.
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._keys: dict[int, bytes] = {}
        self._by_key: dict[bytes, int] = {}
        #: Blocks with a key whose tokens no step has computed yet.
        self._announced: set[int] = set()

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._blank) + len(self._cached)

    def take(self, count: int) -> list[int]:
        """`count` free blocks, whose contents are forgotten; the caller has looked at `num_free`."""
        taken = [self._blank.pop() for _ in range(min(count, len(self._blank)))]
        while len(taken) < count:
            block, _ = self._cached.popitem(last=False)
            self._forget(block)
            taken.append(block)
        for block in taken:
            self._holders[block] = 1
        return taken

    def hold(self, blocks: list[int]) -> None:
        """Become another holder of blocks that were found."""
        for block in blocks:
            if self._holders[block] == 0:
                del self._cached[block]
            self._holders[block] += 1

    def give_back(self, blocks: list[int]) -> None:
        """Stop holding the blocks of a sequence. The last of them are the first to be reused."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block]:
                continue
            if block in self._announced:
                self._forget(block)
            if block in self._keys:
                self._cached[block] = None
            else:
                self._blank.append(block)

    def find(self, keys: Iterable[bytes]) -> list[int]:
        """The blocks of as many keys as are known, up to the first that is not."""
        found = []
        for key in keys:
            block = self._by_key.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def num_unheld(self, blocks: list[int]) -> int:
        """How many of these blocks are free."""
        return sum(self._holders[block] == 0 for block in blocks)

    def is_ready(self, block: int) -> bool:
        """Whether a block that was found is computed by the end of this step."""
        return block not in self._announced

    def announce(self, block: int, key: bytes) -> None:
        """Say what a block is going to contain, unless another has the same."""
        if key not in self._by_key:
            self._by_key[key] = block
            self._keys[block] = key
            self._announced.add(block)

    def settle(self, block: int) -> None:
        """Say that the step being planned computes what was announced."""
        self._announced.discard(block)

    def _forget(self, block: int) -> None:
        del self._by_key[self._keys.pop(block)]
        self._announced.discard(block)


def blocks_for(num_tokens: int, block_size: int) -> int:
    """Blocks that hold this many tokens."""
    return -(-num_tokens // block_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePlan:
    """How large the cache is and the longest sequence that it serves."""

    num_blocks: int
    block_size: int
    max_model_len: int

    @classmethod
    def paged(
        cls,
        *,
        token_bytes: int,
        block_size: int,
        budget_bytes: int,
        max_num_seqs: int,
        max_model_len: int | None,
        model_limit: int,
    ) -> "CachePlan":
        """What all sequences at full length need, within the budget.

        Raises ConfigError if one sequence of the asked length does not fit.
        """
        wanted = blocks_for(max_model_len or model_limit, block_size)
        num_blocks = min(wanted * max_num_seqs, budget_bytes // (token_bytes * block_size))
        capacity = num_blocks * block_size
        _require_room(capacity, max_model_len or block_size, token_bytes)
        limit = max_model_len or min(model_limit, capacity)
        return cls(num_blocks=num_blocks, block_size=block_size, max_model_len=limit)

    @classmethod
    def contiguous(
        cls,
        *,
        token_bytes: int,
        budget_bytes: int,
        max_num_seqs: int,
        max_model_len: int | None,
        model_limit: int,
    ) -> "CachePlan":
        """One block of the full length for each sequence, as the budget allows. Raises ConfigError."""
        capacity = budget_bytes // token_bytes
        _require_room(capacity, max_model_len or 1, token_bytes)
        limit = max_model_len or min(model_limit, capacity)
        return cls(num_blocks=min(max_num_seqs, capacity // limit), block_size=limit, max_model_len=limit)


def _require_room(capacity: int, needed: int, token_bytes: int) -> None:
    if capacity < needed:
        raise ConfigError(
            f"the KV cache holds {capacity} tokens, fewer than one request of {needed}: "
            f"raise kv_cache_bytes (a token takes {token_bytes} bytes) or lower max_model_len"
        )
