"""What a full block of the KV cache contains, as a key: its tokens, all before them, and their rope base.

Keys are chained, so that one stands for the whole prefix (nano-vllm and vLLM do likewise). They are digests
of 128 bits and not Python's hashes: a prompt must not be able to meet another's blocks.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from struct import pack

_DIGEST_BYTES = 16


@dataclass(slots=True)
class BlockKeys:
    """The keys of one sequence's full blocks, made as far as they are asked for."""

    block_size: int
    #: The rope base of the prompt. Where those of two sequences are equal, so are those of all later tokens:
    #: beyond max_position a decoded token's base goes by its position alone, and so does its prompt's length.
    base: float
    _keys: list[bytes] = field(default_factory=list)

    def up_to(self, tokens: Sequence[int], num_tokens: int) -> list[bytes]:
        """The keys of the full blocks within the first `num_tokens` of the sequence's tokens."""
        size = self.block_size
        count = num_tokens // size
        for number in range(len(self._keys), count):
            parent = self._keys[-1] if self._keys else pack("<f", self.base)
            own = array("i", tokens[number * size : (number + 1) * size])
            self._keys.append(blake2b(parent + own.tobytes(), digest_size=_DIGEST_BYTES).digest())
        return self._keys[:count]
