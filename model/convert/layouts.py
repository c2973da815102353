"""Rearranges a checkpoint: as it is with every tensor accounted for, or packed as InternLM2.

Owns InternLM2's packing and its config.json. Names come from `families`, as the engine's own do.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch

from model.config import ModelConfig
from model.convert.checkpoint import Checkpoint, LazyTensor
from model.errors import CheckpointError, UnsupportedModelError
from model.families import FAMILIES, Family


def as_stored(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint with just the tensors its architecture needs. Raises CheckpointError.

    Buffers that older versions saved (`rotary_emb.inv_freq`), a tied head and the pointers to remote code go.
    """
    shape = _shape(checkpoint.config)
    names = _names(shape, shape.family)
    config = {key: value for key, value in checkpoint.config.items() if key not in {"auto_map", "dtype"}}
    return Checkpoint(
        config=config, tensors={name: _tensor(checkpoint, name) for name in names}, files=checkpoint.files
    )


def as_internlm2(checkpoint: Checkpoint) -> Checkpoint:
    """Return the same model in InternLM2's layout; bit by bit the same values.

    Raises UnsupportedModelError where InternLM2 can not express the model.
    """
    shape = _shape(checkpoint.config)
    if shape.architecture == "InternLM2ForCausalLM":
        return as_stored(checkpoint)
    _require_expressible(shape)
    target = FAMILIES["InternLM2ForCausalLM"]
    renamed = dict(zip(_names(shape, target), _sources(shape), strict=True))
    tensors = {
        name: _tensor(checkpoint, sources[0]) if len(sources) == 1 else _packed(checkpoint, sources, shape)
        for name, sources in renamed.items()
    }
    return Checkpoint(
        config=_internlm2_config(checkpoint.config, shape), tensors=tensors, files=checkpoint.files
    )


def pack_qkv(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, kv_heads: int, head_dim: int
) -> torch.Tensor:
    """Return wqkv (or its bias): rows `[kv_head][query heads of the group, k, v][head_dim]`.

    q is [heads * head_dim, ...], k and v are [kv_heads * head_dim, ...]; query head h * g + j is of group h.
    """
    groups = [part.reshape(kv_heads, -1, head_dim, *part.shape[1:]) for part in (q, k, v)]
    return torch.cat(groups, dim=1).reshape(-1, *q.shape[1:])


def _shape(config: Mapping[str, Any]) -> ModelConfig:
    try:
        return ModelConfig.parse(config, None)
    except KeyError as error:
        raise CheckpointError(f"config.json lacks {error.args[0]}") from error
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"config.json has a value of the wrong kind: {error}") from error


def _names(shape: ModelConfig, family: Family) -> Iterator[str]:
    """Every tensor's name, in the order of `_sources`."""
    yield f"{family.embedding}.weight"
    for layer in range(shape.num_layers):
        for template in (family.attention_norm, *family.qkv, family.out, family.mlp_norm):
            yield f"{template}.weight".format(layer)
        for template in (family.gate, family.up, family.down):
            yield f"{template}.weight".format(layer)
        yield from (f"{template}.bias".format(layer) for template in _biased(shape, family))
    yield f"{family.final_norm}.weight"
    if family is not shape.family or not shape.tied_head:
        yield f"{family.head}.weight"


def _biased(shape: ModelConfig, family: Family) -> list[str]:
    return [
        *(family.qkv if shape.qkv_bias else ()),
        *((family.out,) if shape.out_bias else ()),
        *((family.gate, family.up, family.down) if shape.mlp_bias else ()),
    ]


def _sources(shape: ModelConfig) -> Iterator[tuple[str, ...]]:
    """What each of InternLM2's tensors is made of, in the order of `_names`: one tensor, or q, k and v."""
    family = shape.family
    head = family.embedding if shape.tied_head else family.head
    yield (f"{family.embedding}.weight",)
    for layer in range(shape.num_layers):
        weights: tuple[tuple[str, ...], ...] = (
            (family.attention_norm,), family.qkv, (family.out,), (family.mlp_norm,),
            (family.gate,), (family.up,), (family.down,),
        )  # fmt: skip
        biases = ((family.qkv,) if shape.qkv_bias else ()) + (((family.out,),) if shape.out_bias else ())
        for templates, kind in [(group, "weight") for group in weights] + [
            (group, "bias") for group in biases
        ]:
            yield tuple(f"{template}.{kind}".format(layer) for template in templates)
    yield (f"{family.final_norm}.weight",)
    yield (f"{head}.weight",)


def _packed(checkpoint: Checkpoint, names: tuple[str, ...], shape: ModelConfig) -> LazyTensor:
    parts = [_tensor(checkpoint, name) for name in names]
    heads = (shape.num_heads, shape.num_kv_heads, shape.num_kv_heads)
    for name, part, count in zip(names, parts, heads, strict=True):
        if part.shape[0] != count * shape.head_dim:
            raise CheckpointError(
                f"{name} has {part.shape[0]} rows; config.json says {count * shape.head_dim}"
            )
    rows = sum(part.shape[0] for part in parts)
    return LazyTensor(
        shape=(rows, *parts[0].shape[1:]), dtype=parts[0].dtype, read=partial(_read_packed, parts, shape)
    )


def _read_packed(parts: list[LazyTensor], shape: ModelConfig) -> torch.Tensor:
    q, k, v = (part.read() for part in parts)
    return pack_qkv(q, k, v, kv_heads=shape.num_kv_heads, head_dim=shape.head_dim)


def _tensor(checkpoint: Checkpoint, name: str) -> LazyTensor:
    found = checkpoint.tensors.get(name)
    if found is None:
        raise CheckpointError(f"the weights lack {name}")
    return found


def _require_expressible(shape: ModelConfig) -> None:
    obstacles: Mapping[str, Callable[[], bool]] = {
        "its heads do not add up to the hidden size": lambda: (
            shape.head_dim * shape.num_heads != shape.hidden_size
        ),
        "it has biases in the MLP": lambda: shape.mlp_bias,
        "only one of wqkv and wo has biases": lambda: shape.qkv_bias != shape.out_bias,
        "its rope grows otherwise": lambda: shape.rope.kind == "dynamic" and not shape.rope.grows,
    }
    for reason, holds in obstacles.items():
        if holds():
            raise UnsupportedModelError(f"{shape.architecture} can not be packed as InternLM2: {reason}")


def _internlm2_config(config: Mapping[str, Any], shape: ModelConfig) -> dict[str, Any]:
    rope = shape.rope
    kept = ("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "use_cache")
    return {
        "architectures": ["InternLM2ForCausalLM"],
        "model_type": "internlm2",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "hidden_act": "silu",
        "rms_norm_eps": shape.norm_eps,
        "max_position_embeddings": rope.max_position,
        "rope_theta": rope.theta,
        "rope_scaling": None if rope.kind == "default" else {"type": rope.kind, "factor": rope.factor},
        "bias": shape.qkv_bias,
        "tie_word_embeddings": False,
        **{key: config[key] for key in kept if config.get(key) is not None},
    }
