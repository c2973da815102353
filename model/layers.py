"""The parts of the decoder on one rank: embedding, attention, MLP, head. Each loads and applies its slice."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from torch import Tensor

from model.config import Int8Scheme, ModelConfig, Quantization
from model.devices import Attend, Device, LayerCache, Projection, Quantizes
from model.errors import ConfigError
from model.parallel import Group, Shard
from model.quantization import quantize
from model.weights import Checkpoint, RandomCheckpoint, Rows, qkv_rows


@dataclass(frozen=True, slots=True)
class Loader:
    """All that a layer needs to load itself. Raises ConfigError where the device can not quantize so."""

    config: ModelConfig
    shard: Shard
    checkpoint: Checkpoint | RandomCheckpoint
    device: Device
    where: torch.device
    quantization: Quantization = "none"

    def __post_init__(self) -> None:
        if self.quantization != "none":
            self._quantizing().scale_dtype(self.quantization, self.checkpoint.dtype)

    def vector(self, name: str) -> Tensor:
        """A norm's weight, [hidden_size]."""
        return self.checkpoint.vector(f"{name}.weight", self.config.hidden_size).to(self.where)

    def split_by_rows(self, parts: Sequence[Rows], *, bias: bool) -> Projection:
        """A projection whose outputs are split over the ranks."""
        weight = self.checkpoint.rows([_suffixed(part, "weight") for part in parts], self.config.hidden_size)
        biases = self.checkpoint.rows([_suffixed(part, "bias") for part in parts]) if bias else None
        return self._projection(weight, biases)

    def split_by_columns(self, name: str, columns: int, part: tuple[int, int], *, bias: bool) -> Projection:
        """A projection whose inputs are split over the ranks; the sum over the ranks has the bias once."""
        hidden = self.config.hidden_size
        weight = self.checkpoint.columns(f"{name}.weight", (hidden, columns), *part)
        biases = self.checkpoint.vector(f"{name}.bias", hidden) if bias and self.shard.rank == 0 else None
        return self._projection(weight, biases)

    def vocabulary(self, name: str) -> Tensor:
        """This rank's rows of an embedding or head, zeros past the vocabulary's end, [rows, hidden_size]."""
        first, last = self.shard.vocab
        total = self.config.vocab_size
        rows = Rows(f"{name}.weight", first, last, total)
        return self.checkpoint.rows([rows], self.config.hidden_size).to(self.where)

    def _projection(self, weight: Tensor, bias: Tensor | None) -> Projection:
        bias = None if bias is None else bias.to(self.where)
        if self.quantization == "none":
            return self.device.projection(weight.to(self.where), bias)
        return self._quantized(weight, bias, self.quantization)

    def _quantized(self, weight: Tensor, bias: Tensor | None, scheme: Int8Scheme) -> Projection:
        """The weight becomes int8 on the host: the device never holds it in any other form."""
        device = self._quantizing()
        values, scale = quantize(weight, device.scale_dtype(scheme, weight.dtype))
        return device.quantized_projection(values.to(self.where), scale.to(self.where), bias, scheme)

    def _quantizing(self) -> Quantizes:
        if isinstance(self.device, Quantizes):
            return self.device
        raise ConfigError(
            f"device {self.where.type} does not multiply by int8 weights: set quantization to none, "
            "or device to npu"
        )


def _suffixed(rows: Rows, suffix: str) -> Rows:
    return Rows(f"{rows.name}.{suffix}", rows.first, rows.last, rows.total)


class Embedding:
    """Token ids → vectors. Each rank looks up the ids that are its own, and the sum has them all."""

    def __init__(self, weight: Tensor, shard: Shard, group: Group) -> None:
        self.weight = weight
        self.first, self.last = shard.vocab
        self.group = group

    def __call__(self, token_ids: Tensor) -> Tensor:
        """[tokens] → [tokens, hidden_size]"""
        if self.group.world == 1:
            return F.embedding(token_ids, self.weight)
        foreign = (token_ids < self.first) | (token_ids >= self.last)
        vectors = F.embedding((token_ids - self.first).masked_fill_(foreign, 0), self.weight)
        return self.group.all_reduce(vectors.masked_fill_(foreign[:, None], 0))


class Attention:
    """Grouped-query attention with one merged projection for query, key and value."""

    def __init__(self, load: Loader, layer: int, group: Group) -> None:
        config, shard = load.config, load.shard
        self.num_heads, self.num_kv_heads, self.head_dim = (
            shard.num_heads,
            shard.num_kv_heads,
            config.head_dim,
        )
        self.qkv = load.split_by_rows(qkv_rows(config, shard, layer), bias=config.qkv_bias)
        self.out = load.split_by_columns(
            config.family.out.format(layer),
            config.num_heads * config.head_dim,
            (shard.heads[0] * config.head_dim, shard.heads[1] * config.head_dim),
            bias=config.out_bias,
        )
        self.device = load.device
        self.group = group

    def mix(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend, cache: LayerCache) -> Tensor:
        """[tokens, hidden_size] → the heads' values, [tokens, heads * head_dim] of this rank.

        Also caches the tokens' keys and values. cos and sin as `rope.cos_sin` gives them.
        """
        heads = self.qkv(x).view(len(x), -1, self.head_dim)
        rotary = heads[:, : -self.num_kv_heads]
        self.device.rotate(rotary, cos, sin)
        query, key = rotary[:, : self.num_heads], rotary[:, self.num_heads :]
        value = heads[:, -self.num_kv_heads :]
        return attend(query, key, value, cache)

    def project(self, mixed: Tensor) -> Tensor:
        """What `mix` gives → [tokens, hidden_size]."""
        return self.group.sum_of(self.out, mixed)


class MLP:
    """down(silu(gate(x)) * up(x)), gate and up in one projection."""

    def __init__(self, load: Loader, layer: int, group: Group) -> None:
        config, part = load.config, load.shard.mlp
        names = (config.family.gate.format(layer), config.family.up.format(layer))
        self.gate_up = load.split_by_rows(
            [Rows(name, *part, config.intermediate_size) for name in names], bias=config.mlp_bias
        )
        self.down = load.split_by_columns(
            config.family.down.format(layer), config.intermediate_size, part, bias=config.mlp_bias
        )
        self.device = load.device
        self.group = group

    def __call__(self, x: Tensor) -> Tensor:
        """[tokens, hidden_size] → the same."""
        return self.group.sum_of(self.down, self.device.gate(self.gate_up(x)))


class Head:
    """Vectors → logits of the whole vocabulary, on rank 0."""

    def __init__(self, weight: Tensor, vocab_size: int, device: Device, group: Group) -> None:
        self.project = device.projection(weight, None)
        self.vocab_size = vocab_size
        self.group = group

    def __call__(self, x: Tensor) -> Tensor | None:
        """[rows, hidden_size] → float32 [rows, vocab_size] on rank 0, None on the others."""
        logits = self.group.gather_columns(self.project(x))
        return None if logits is None else logits[:, : self.vocab_size].float()
