"""The published shapes of the InternLM family as data: what their config.json says, without their weights.

Owns what a run with made-up weights needs before the engine starts: a config.json, and whether the weights
fit into memory. Never makes a tensor.

Sources: config.json of the repositories internlm/<name> on Hugging Face as its users quote them; the factor
of internlm2_5-7b-1m from OpenCompass (configs/models/hf_internlm/lmdeploy_internlm2_5_7b_chat_1m.py).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.config import ModelConfig
from model.errors import ConfigError

_COMMON = {"hidden_act": "silu", "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2}
_INTERNLM = _COMMON | {
    "architectures": ["InternLMForCausalLM"],
    "model_type": "internlm",
    "vocab_size": 103168,
    "rms_norm_eps": 1e-6,
    "rotary": {"base": 10000, "type": "dynamic"},
    "torch_dtype": "float16",
}
_INTERNLM2 = _COMMON | {
    "architectures": ["InternLM2ForCausalLM"],
    "model_type": "internlm2",
    "vocab_size": 92544,
    "bias": False,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000,
    "rope_scaling": None,
    "torch_dtype": "bfloat16",
}
_INTERNLM2_7B = _INTERNLM2 | {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}

#: By the name that `--dry-run-weights` takes; chat models have the shape of their base models.
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "internlm-7b": _INTERNLM
    | {
        "bias": True,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
    },
    "internlm-20b": _INTERNLM
    | {
        "bias": False,
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 60,
        "num_attention_heads": 40,
        "max_position_embeddings": 4096,
    },
    "internlm2-1_8b": _INTERNLM2
    | {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    },
    "internlm2-7b": _INTERNLM2_7B,
    "internlm2-20b": _INTERNLM2
    | {
        "hidden_size": 6144,
        "intermediate_size": 16384,
        "num_hidden_layers": 48,
        "num_attention_heads": 48,
        "rope_scaling": {"type": "dynamic", "factor": 3.0},
    },
    "internlm2_5-7b": _INTERNLM2_7B | {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "internlm2_5-7b-1m": _INTERNLM2_7B
    | {
        "max_position_embeddings": 262144,
        "rope_theta": 50000000,
        "rope_scaling": {"type": "dynamic", "factor": 2.5},
    },
    "internlm3-8b": _COMMON
    | {
        "architectures": ["InternLM3ForCausalLM"],
        "model_type": "internlm3",
        "vocab_size": 128512,
        "hidden_size": 4096,
        "intermediate_size": 10240,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "bias": False,
        "qkv_bias": False,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "rope_theta": 50000000,
        "rope_scaling": {"rope_type": "dynamic", "factor": 6.0},
        "torch_dtype": "bfloat16",
    },
}


def model_config(name: str) -> ModelConfig:
    """A shape as the engine reads it. Raises ConfigError where there is none of this name."""
    config = SHAPES.get(name)
    if config is None:
        raise ConfigError(f"shape {name!r} is unknown; known are {', '.join(SHAPES)}")
    return ModelConfig.parse(config, config["eos_token_id"])


def write(name: str, folder: Path) -> Path:
    """Make `folder` a checkpoint of this shape that lacks weights and tokenizer. Raises ConfigError."""
    model_config(name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(SHAPES[name], indent=2) + "\n", encoding="utf-8")
    return folder


def num_parameters(model: ModelConfig) -> int:
    """How many weights the decoder has, biases included."""
    hidden, heads = model.hidden_size, model.num_heads * model.head_dim
    qkv = heads + 2 * model.num_kv_heads * model.head_dim
    layer = hidden * (qkv + heads + 3 * model.intermediate_size + 2)
    layer += model.qkv_bias * qkv + model.out_bias * hidden
    layer += model.mlp_bias * (2 * model.intermediate_size + hidden)
    embeddings = (1 if model.tied_head else 2) * model.vocab_size * hidden
    return model.num_layers * layer + embeddings + hidden


def require_memory(name: str, bytes_per_weight: int, available: int) -> None:
    """Raise ConfigError where the shape's weights alone are more than the `available` bytes."""
    parameters = num_parameters(model_config(name))
    if parameters * bytes_per_weight > available:
        raise ConfigError(
            f"{name} has {parameters / 1e9:.1f} billion weights of {bytes_per_weight} bytes: they need "
            f"{parameters * bytes_per_weight / 1e9:.1f} GB, and {available / 1e9:.1f} GB of memory are "
            "available; choose a smaller shape or a machine with more memory"
        )
