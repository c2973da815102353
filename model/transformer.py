"""The one decoder of the whole family, on one rank: a step's packed tokens → logits of the sampled rows."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.batch import Batch
from model.devices import CacheShape, DecodeLimits, LayerCache, RecordsDecode, StepInputs
from model.layers import MLP, Attention, Embedding, Head, Loader
from model.parallel import Group
from model.rope import cos_sin, token_bases
from model.transfer import upload


@dataclass(frozen=True, slots=True)
class Layer:
    """One block of the decoder."""

    attention_norm: Tensor
    attention: Attention
    mlp_norm: Tensor
    mlp: MLP


class Decoder:
    """Pre-norm decoder with RMSNorm, rotary positions, grouped-query attention and a gated MLP."""

    def __init__(self, load: Loader, group: Group, sampled: Tensor | None = None) -> None:
        """Read this rank's weights. Raises CheckpointError naming a tensor that is missing or mis-shaped.

        `sampled`, int32 [rows], has the tokens that negative ids stand for, as `Batch` says; None if none do.
        """
        config, family = load.config, load.config.family
        self.config = config
        self._sampled = sampled
        self.device = load.device
        self.where = load.where
        self.dtype = load.checkpoint.dtype
        self.num_kv_heads = load.shard.num_kv_heads
        embedding = load.vocabulary(family.embedding)
        self.embedding = Embedding(embedding, load.shard, group)
        self.layers = [
            Layer(
                attention_norm=load.vector(family.attention_norm.format(layer)),
                attention=Attention(load, layer, group),
                mlp_norm=load.vector(family.mlp_norm.format(layer)),
                mlp=MLP(load, layer, group),
            )
            for layer in range(config.num_layers)
        ]
        self.final_norm = load.vector(family.final_norm)
        head = embedding if config.tied_head else load.vocabulary(family.head)
        self.head = Head(head, config.vocab_size, load.device, group)

    def allocate_cache(self, num_blocks: int, block_size: int) -> list[LayerCache]:
        """An empty paged cache, one entry per layer."""
        config = self.config
        shape = CacheShape(num_blocks, block_size, self.num_kv_heads, config.head_dim)
        return [self.device.allocate_cache(shape, self.dtype, self.where) for _ in self.layers]

    @torch.inference_mode()
    def __call__(self, batch: Batch, caches: list[LayerCache], block_size: int) -> Tensor | None:
        """Float32 logits [rows, vocab_size] of `batch.logit_rows` on rank 0, None on the others."""
        step = StepInputs(
            token_ids=upload(batch.token_ids, self.where),
            positions=upload(batch.positions, self.where),
            bases=upload(self._bases(batch), self.where),
            attend=self.device.attention(batch.attention_metadata(block_size), self.num_kv_heads, self.where),
        )
        everything = len(batch.logit_rows) == len(batch.token_ids)
        x = self._hidden(step, caches, None if everything else upload(batch.logit_rows, self.where))
        if len(x) == 0:
            return x.new_empty((0, self.config.vocab_size), dtype=torch.float32)
        return self.head(x)

    def recorded(
        self, caches: list[LayerCache], limits: DecodeLimits
    ) -> Callable[[Batch], Tensor | None] | None:
        """As calling it, for single tokens whose logits are all wanted; None where nothing is recorded."""
        if not isinstance(self.device, RecordsDecode):
            return None
        run = self.device.record_decode(lambda step: self._hidden(step, caches), limits, self.where)
        if run is None:
            return None

        @torch.inference_mode()
        def decode(batch: Batch) -> Tensor | None:
            return self.head(run(batch, self._bases(batch)))

        return decode

    def _hidden(self, step: StepInputs, caches: list[LayerCache], wanted: Tensor | None = None) -> Tensor:
        """What the head is applied to, [rows, hidden_size], of the wanted rows of the step or of all."""
        cos, sin = self._rotation(step)
        norm, add_norm, eps = self.device.norm, self.device.add_norm, self.config.norm_eps
        residual = self.embedding(self._known(step.token_ids))
        x = norm(residual, self.layers[0].attention_norm, eps)
        next_norms = [*(layer.attention_norm for layer in self.layers[1:]), self.final_norm]
        for layer, cache, next_norm in zip(self.layers, caches, next_norms, strict=True):
            mixed = layer.attention.mix(x, cos, sin, step.attend, cache)
            if wanted is not None and layer is self.layers[-1]:
                # Beyond their keys and values, only the tokens whose logits are wanted matter now.
                mixed, residual = mixed[wanted], residual[wanted]
                if len(residual) == 0:
                    return residual
            x = add_norm(residual, layer.attention.project(mixed), layer.mlp_norm, eps)
            x = add_norm(residual, layer.mlp(x), next_norm, eps)
        return x

    def _known(self, token_ids: Tensor) -> Tensor:
        """The ids with those that the last step sampled, [tokens]."""
        if self._sampled is None:
            return token_ids
        return torch.where(token_ids < 0, self._sampled[(-1 - token_ids).clamp_(min=0)], token_ids)

    def _bases(self, batch: Batch) -> NDArray[np.float32]:
        return token_bases(self.config.rope, self.config.head_dim, batch.positions, batch.token_prompt_lens)

    def _rotation(self, step: StepInputs) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the step's tokens in the decoder's dtype, [tokens, head_dim / 2]."""
        cos, sin = cos_sin(self.config.rope, self.config.head_dim, step.positions, step.bases)
        return cos.to(self.dtype), sin.to(self.dtype)
