"""Opens a GGUF file as the Llama checkpoint it was made from: names, order of rows, config, values.

Owns GGUF's conventions, as llama.cpp's converters write them (gguf-py's constants, and LlamaModel.permute of
convert_hf_to_gguf.py). The vocabulary is `gguf_tokenizer`'s.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, dequantize

from model.convert import gguf_tokenizer
from model.convert.checkpoint import Checkpoint, LazyTensor
from model.convert.layouts import as_internlm2
from model.errors import CheckpointError, UnsupportedModelError

_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
#: Types that are values and not blocks. A block's value is exact in float32.
_PLAIN = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}
#: What may be left out: tables that are computed from the config.
_DERIVED = frozenset({"rope_freqs.weight"})


def open_checkpoint(path: Path) -> Checkpoint:
    """Open `path`. Raises CheckpointError and UnsupportedModelError."""
    try:
        reader = GGUFReader(path)
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise CheckpointError(f"{path} is not a GGUF file, or is truncated: {error}") from error
    fields = {key: field.contents() for key, field in reader.fields.items()}
    architecture = fields.get("general.architecture")
    if architecture not in {"llama", "internlm2"}:
        raise UnsupportedModelError(
            f"{path} is of architecture {architecture}: only llama and internlm2 are known"
        )
    shape = {
        key.partition(".")[2]: value for key, value in fields.items() if key.startswith(f"{architecture}.")
    }
    try:
        config = _config(
            shape, {tensor.name for tensor in reader.tensors}, len(fields["tokenizer.ggml.tokens"])
        )
        files = gguf_tokenizer.files(fields)
    except KeyError as error:
        raise CheckpointError(f"{path} lacks the key {error.args[0]}") from error
    config |= gguf_tokenizer.special_ids(fields)
    llama = Checkpoint(config=config, tensors=_tensors(reader, config), files=files)
    return as_internlm2(llama) if architecture == "internlm2" else llama


def _config(shape: Mapping[str, Any], names: set[str], vocab_size: int) -> dict[str, Any]:
    if shape.get("expert_count"):
        raise UnsupportedModelError("mixture-of-experts models are not of the family")
    if _DERIVED & names:
        raise UnsupportedModelError("the file stretches its rope with rope_freqs, which is not supported")
    if shape.get("rope.scaling.type", "none") not in {"none", "linear"}:
        raise UnsupportedModelError(f"rope scaling {shape['rope.scaling.type']} is not supported")
    heads = shape["attention.head_count"]
    hidden = shape["embedding_length"]
    linear = shape.get("rope.scaling.type") == "linear"
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": shape["feed_forward_length"],
        "num_hidden_layers": shape["block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": shape.get("attention.head_count_kv", heads),
        "head_dim": shape.get("attention.key_length", hidden // heads),
        "hidden_act": "silu",
        "max_position_embeddings": shape["context_length"],
        # The file holds a float32: its shortest decimal is what was meant.
        "rms_norm_eps": float(str(np.float32(shape["attention.layer_norm_rms_epsilon"]))),
        "rope_theta": float(shape.get("rope.freq_base", 10000.0)),
        "rope_scaling": {"type": "linear", "factor": shape["rope.scaling.factor"]} if linear else None,
        "attention_bias": "blk.0.attn_q.bias" in names,
        "mlp_bias": "blk.0.ffn_gate.bias" in names,
        "tie_word_embeddings": "output.weight" not in names,
        "initializer_range": 0.02,
        "use_cache": True,
    }


def _tensors(reader: GGUFReader, config: Mapping[str, Any]) -> dict[str, LazyTensor]:
    types = {tensor.tensor_type for tensor in reader.tensors}
    # Norms are kept in float32 beside half-precision weights: the weights' type is the model's.
    dtype = torch.float32
    if types <= _PLAIN.keys():
        dtype = next((_PLAIN[kind] for kind in types if kind != GGMLQuantizationType.F32), torch.float32)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    found = {}
    for tensor in reader.tensors:
        name = _name(tensor.name)
        rotated = next((heads[part] for part in heads if f".{part}." in name), 0)
        # ggml counts dimensions from the innermost.
        size = tuple(int(n) for n in reversed(tensor.shape))
        found[name] = LazyTensor(shape=size, dtype=dtype, read=_Read(tensor, size, dtype, rotated))
    return found


class _Read:
    """Reads one tensor: dequantizes it, and for q and k undoes the order of rows of interleaved rotation."""

    def __init__(self, tensor: Any, shape: tuple[int, ...], dtype: torch.dtype, heads: int) -> None:
        self._tensor, self._shape, self._dtype, self._heads = tensor, shape, dtype, heads

    def __call__(self) -> torch.Tensor:
        values = np.array(dequantize(self._tensor.data, self._tensor.tensor_type), dtype=np.float32)
        result = torch.from_numpy(values.reshape(self._shape))
        if self._heads:
            pairs = result.reshape(self._heads, -1, 2, *self._shape[1:])
            result = pairs.transpose(1, 2).reshape(self._shape)
        return result.to(self._dtype).contiguous()


def _name(name: str) -> str:
    if name in _TOP:
        return _TOP[name]
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in _BLOCK:
        return f"model.layers.{parts[1]}.{_BLOCK[parts[2]]}.{parts[3]}"
    raise UnsupportedModelError(f"tensor {name} has no place in a Llama model")
