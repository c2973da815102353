"""The architectures as data: where each keeps its tensors, which biases it has and how it writes its rope.

One row per architecture. A tensor name is a template over the layer number, without its `.weight` or `.bias`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

RopeKind = Literal["default", "linear", "dynamic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Rotary position embedding: the base is theta, stretched as `kind` says.

    linear divides positions by `factor`. dynamic (NTK) enlarges the base for n > max_position tokens to
    theta * (factor * n / max_position - (factor - 1)) ** (d / (d - 2)).
    """

    theta: float
    kind: RopeKind = "default"
    factor: float = 1.0
    max_position: int
    #: dynamic: a decoded token stretches the base further (n = its position + 1), or keeps the prompt's.
    grows: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One architecture. A bias key names the boolean in config.json that gives those tensors biases."""

    embedding: str
    attention_norm: str
    #: q, k and v, or one packed tensor of rows [kv_head][query heads of its group, k, v][head_dim].
    qkv: tuple[str] | tuple[str, str, str]
    out: str
    mlp_norm: str
    gate: str
    up: str
    down: str
    final_norm: str
    head: str
    qkv_bias_key: str
    out_bias_key: str
    mlp_bias_key: str | None
    read_rope: Callable[[Mapping[str, Any]], dict[str, Any]]


def _rope_scaling(config: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_theta` with `rope_scaling`, or transformers 5's `rope_parameters` with both."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return {
        "theta": float(scaling.get("rope_theta") or config.get("rope_theta") or 10000.0),
        "kind": scaling.get("rope_type") or scaling.get("type") or "default",
        "factor": float(scaling.get("factor") or 1.0),
    }


def _rotary(config: Mapping[str, Any]) -> dict[str, Any]:
    """InternLM v1's `rotary`. Its code re-rotates all keys as the sequence grows; a held base is closest."""
    rotary = config.get("rotary") or {}
    kind = rotary.get("type", "origin")
    return {
        "theta": float(rotary.get("base", 10000)),
        "kind": "default" if kind == "origin" else kind,
        "factor": float(rotary.get("scaling_factor", 1.0)),
        "grows": False,
    }


_LLAMA = Family(
    embedding="model.embed_tokens",
    attention_norm="model.layers.{}.input_layernorm",
    qkv=(
        "model.layers.{}.self_attn.q_proj",
        "model.layers.{}.self_attn.k_proj",
        "model.layers.{}.self_attn.v_proj",
    ),
    out="model.layers.{}.self_attn.o_proj",
    mlp_norm="model.layers.{}.post_attention_layernorm",
    gate="model.layers.{}.mlp.gate_proj",
    up="model.layers.{}.mlp.up_proj",
    down="model.layers.{}.mlp.down_proj",
    final_norm="model.norm",
    head="lm_head",
    qkv_bias_key="attention_bias",
    out_bias_key="attention_bias",
    mlp_bias_key="mlp_bias",
    read_rope=_rope_scaling,
)

_INTERNLM2 = Family(
    embedding="model.tok_embeddings",
    attention_norm="model.layers.{}.attention_norm",
    qkv=("model.layers.{}.attention.wqkv",),
    out="model.layers.{}.attention.wo",
    mlp_norm="model.layers.{}.ffn_norm",
    gate="model.layers.{}.feed_forward.w1",
    up="model.layers.{}.feed_forward.w3",
    down="model.layers.{}.feed_forward.w2",
    final_norm="model.norm",
    head="output",
    qkv_bias_key="bias",
    out_bias_key="bias",
    mlp_bias_key=None,
    read_rope=_rope_scaling,
)

#: By `architectures[0]` of config.json.
FAMILIES: Mapping[str, Family] = {
    "LlamaForCausalLM": _LLAMA,
    "InternLMForCausalLM": replace(
        _LLAMA, qkv_bias_key="bias", out_bias_key="bias", mlp_bias_key=None, read_rope=_rotary
    ),
    "InternLM2ForCausalLM": _INTERNLM2,
    "InternLM3ForCausalLM": replace(
        _LLAMA, qkv_bias_key="qkv_bias", out_bias_key="bias", mlp_bias_key="bias"
    ),
}
