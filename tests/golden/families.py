"""Tiny random checkpoints of each architecture, and the same weights in transformers' LlamaForCausalLM.

Another implementation to compare with where the reference data is absent. The weights are drawn once in
Llama's names; `write` renames and packs them as each architecture's files have them, by its own code.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY, HIDDEN, INNER, LAYERS, HEAD_DIM = 160, 64, 96, 2, 16
CONTEXT = 128

#: A part of Llama's names → InternLM2's.
_INTERNLM2 = {
    "model.embed_tokens": "model.tok_embeddings",
    "lm_head": "output",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiny:
    """One checkpoint to be written: its config beyond the common shape, and where it has biases."""

    architecture: str
    heads: int = 4
    kv_heads: int = 2
    #: Its own config entries.
    config: dict[str, Any] = field(default_factory=dict)
    #: Of transformers' LlamaConfig, for the same computation.
    llama: dict[str, Any] = field(default_factory=dict)
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    tied: bool = False


def rope(**parameters: Any) -> dict[str, Any]:
    """transformers 5's entry."""
    return {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default", **parameters}}


TINY = {
    "v1 with biases": Tiny(
        architecture="InternLMForCausalLM",
        kv_heads=4,
        config={"bias": True, "rotary": {"base": 5000, "type": "origin"}},
        llama={"attention_bias": True, **rope(rope_theta=5000.0)},
        qkv_bias=True,
        out_bias=True,
    ),
    "v1 without, dynamic": Tiny(
        architecture="InternLMForCausalLM",
        kv_heads=4,
        config={"bias": False, "rotary": {"base": 10000, "type": "dynamic"}},
        llama=rope(),
    ),
    "v2": Tiny(
        architecture="InternLM2ForCausalLM",
        config={"bias": False, "rope_theta": 1e6, "rope_scaling": None},
        llama=rope(rope_theta=1e6),
    ),
    "v2 with biases, one kv head, linear": Tiny(
        architecture="InternLM2ForCausalLM",
        kv_heads=1,
        config={"bias": True, "rope_theta": 10000, "rope_scaling": {"type": "linear", "factor": 4.0}},
        llama={"attention_bias": True, **rope(rope_type="linear", factor=4.0)},
        qkv_bias=True,
        out_bias=True,
    ),
    "v2, dynamic, within max_position": Tiny(
        architecture="InternLM2ForCausalLM",
        config={"bias": False, "rope_theta": 10000, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
        llama=rope(),
    ),
    "v3": Tiny(
        architecture="InternLM3ForCausalLM",
        config={"head_dim": 32, "qkv_bias": False, "bias": False, "rope_theta": 5e7},
        llama={"head_dim": 32, **rope(rope_theta=5e7)},
    ),
    "v3 with all biases": Tiny(
        architecture="InternLM3ForCausalLM",
        config={"qkv_bias": True, "bias": True, "rope_theta": 10000},
        llama={"attention_bias": True, "mlp_bias": True, **rope()},
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
    ),
    "v3 with qkv biases": Tiny(
        architecture="InternLM3ForCausalLM",
        config={"qkv_bias": True, "bias": False, "rope_theta": 10000},
        llama={"attention_bias": True, **rope()},
        qkv_bias=True,
    ),
    "llama, tied": Tiny(
        architecture="LlamaForCausalLM",
        config={"tie_word_embeddings": True, "rope_theta": 10000.0},
        llama={"tie_word_embeddings": True, **rope()},
        tied=True,
    ),
    "llama with all biases, linear": Tiny(
        architecture="LlamaForCausalLM",
        config={"attention_bias": True, "mlp_bias": True, **rope(rope_type="linear", factor=2.0)},
        llama={"attention_bias": True, "mlp_bias": True, **rope(rope_type="linear", factor=2.0)},
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
    ),
}


#: Prompts and answers go past max_position: transformers does as InternLM2.5's code where it caches keys.
DYNAMIC = {
    name: Tiny(
        architecture=architecture,
        config={**config, "rope_theta": 10000.0, "max_position_embeddings": 32},
        llama={"max_position_embeddings": 32, **rope(rope_type="dynamic", factor=factor)},
    )
    for name, architecture, factor, config in (
        ("v2", "InternLM2ForCausalLM", 2.0, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
        ("v3", "InternLM3ForCausalLM", 6.0, {"rope_scaling": {"rope_type": "dynamic", "factor": 6.0}}),
        ("llama", "LlamaForCausalLM", 1.0, rope(rope_type="dynamic", factor=1.0)),
    )
}


def weights(tiny: Tiny, seed: int) -> dict[str, np.ndarray]:
    """In Llama's names; a bias that the architecture has not is left out."""
    random = np.random.default_rng(seed)
    head_dim = tiny.config.get("head_dim", HEAD_DIM)
    query, kv = tiny.heads * head_dim, tiny.kv_heads * head_dim
    matrices = {"model.embed_tokens": (VOCABULARY, HIDDEN)} | (
        {} if tiny.tied else {"lm_head": (VOCABULARY, HIDDEN)}
    )
    biases, norms = {}, {"model.norm": HIDDEN}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        norms |= {f"{at}.input_layernorm": HIDDEN, f"{at}.post_attention_layernorm": HIDDEN}
        for part, rows, columns, biased in (
            ("self_attn.q_proj", query, HIDDEN, tiny.qkv_bias),
            ("self_attn.k_proj", kv, HIDDEN, tiny.qkv_bias),
            ("self_attn.v_proj", kv, HIDDEN, tiny.qkv_bias),
            ("self_attn.o_proj", HIDDEN, query, tiny.out_bias),
            ("mlp.gate_proj", INNER, HIDDEN, tiny.mlp_bias),
            ("mlp.up_proj", INNER, HIDDEN, tiny.mlp_bias),
            ("mlp.down_proj", HIDDEN, INNER, tiny.mlp_bias),
        ):
            matrices[f"{at}.{part}"] = (rows, columns)
            if biased:
                biases[f"{at}.{part}"] = rows
    drawn = {
        **{f"{name}.weight": random.normal(0, 0.15, shape) for name, shape in matrices.items()},
        **{f"{name}.bias": random.normal(0, 0.3, size) for name, size in biases.items()},
        **{f"{name}.weight": random.uniform(0.5, 1.5, size) for name, size in norms.items()},
    }
    # Larger, so that logits are far enough apart for a greedy choice to be no matter of rounding.
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in drawn:
            drawn[name] *= 5
    return {name: values.astype(np.float32) for name, values in drawn.items()}


def write(tiny: Tiny, folder: Path, own: dict[str, np.ndarray]) -> None:
    """The checkpoint as its architecture has it."""
    config = {
        "architectures": [tiny.architecture],
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": tiny.heads,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": CONTEXT,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "eos_token_id": 2,
        **tiny.config,
    }
    if tiny.kv_heads != tiny.heads:
        config["num_key_value_heads"] = tiny.kv_heads
    (folder / "config.json").write_text(json.dumps(config))
    stored = _internlm2(tiny, own) if tiny.architecture == "InternLM2ForCausalLM" else own
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})


def _internlm2(tiny: Tiny, own: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renamed, and q, k and v packed: for each kv head its group's query heads, its key, its value."""
    stored, group = {}, tiny.heads // tiny.kv_heads
    for name, values in own.items():
        if "_proj" in name and "self_attn.o" not in name and "mlp" not in name:
            continue
        for part, new in _INTERNLM2.items():
            name = name.replace(part, new)  # noqa: PLW2901
        stored[name] = values
    for layer in range(LAYERS):
        for suffix in ("weight", "bias") if tiny.qkv_bias else ("weight",):
            q, k, v = (own[f"model.layers.{layer}.self_attn.{part}_proj.{suffix}"] for part in "qkv")
            rows: list[np.ndarray] = []
            for kv_head in range(tiny.kv_heads):
                rows += [_head(q, head) for head in range(kv_head * group, (kv_head + 1) * group)]
                rows += [_head(k, kv_head), _head(v, kv_head)]
            stored[f"model.layers.{layer}.attention.wqkv.{suffix}"] = np.concatenate(rows)
    return stored


def _head(rows: np.ndarray, head: int) -> np.ndarray:
    return rows[head * HEAD_DIM : (head + 1) * HEAD_DIM]


def llama(tiny: Tiny, own: dict[str, np.ndarray]) -> LlamaForCausalLM:
    """transformers' model with these weights, biases that the architecture has not at zero."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=tiny.heads,
        num_key_value_heads=tiny.kv_heads,
        rms_norm_eps=1e-6,
        attn_implementation="eager",
        **{"head_dim": HEAD_DIM, "max_position_embeddings": CONTEXT, **tiny.llama},
    )
    model = LlamaForCausalLM(config).eval()
    given = {name: torch.from_numpy(values) for name, values in own.items()}
    missing, unexpected = model.load_state_dict(given, strict=False)
    assert not unexpected
    state = model.state_dict()
    for name in missing:
        assert name.endswith(".bias") or (tiny.tied and name == "lm_head.weight")
        if name.endswith(".bias"):
            state[name].zero_()
    return model
