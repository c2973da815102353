"""A checkpoint small enough to start in seconds: the real layout of a Llama model with random weights.

It has a byte-level tokenizer with ChatML's marks, so it answers any dialogue, with nonsense.
"""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

MARKS = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
CONTEXT = 256
_HIDDEN, _LAYERS, _HEADS, _KV_HEADS, _INNER = 32, 2, 4, 2, 64


def make_tiny_checkpoint(folder: Path, *, head_dim: int = _HIDDEN // _HEADS) -> Path:
    """Write the checkpoint into a new folder. Accelerators take heads of 64 and not those of 8."""
    folder.mkdir(parents=True)
    size = _write_tokenizer(folder)
    _write_json(
        folder / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "head_dim": head_dim,
            "hidden_size": _HIDDEN,
            "num_hidden_layers": _LAYERS,
            "num_attention_heads": _HEADS,
            "num_key_value_heads": _KV_HEADS,
            "intermediate_size": _INNER,
            "vocab_size": size,
            "max_position_embeddings": CONTEXT,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "torch_dtype": "float32",
            "bos_token_id": 0,
            "eos_token_id": 1,
        },
    )
    _write_json(folder / "generation_config.json", {"eos_token_id": [1, 3]})
    save_file(_weights(size, head_dim), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _write_tokenizer(folder: Path) -> int:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: number for number, text in enumerate([*MARKS, *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in MARKS])
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "bos_token": "<s>",
            "eos_token": "<|im_end|>",
            "chat_template": "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
            "{{ message['content'] }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n",
        },
    )
    return len(vocabulary)


def _weights(vocabulary: int, head_dim: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    heads, kv_heads = _HEADS * head_dim, _KV_HEADS * head_dim
    shapes = {
        "model.embed_tokens": (vocabulary, _HIDDEN),
        "lm_head": (vocabulary, _HIDDEN),
        "model.norm": (_HIDDEN,),
    }
    for layer in range(_LAYERS):
        at = f"model.layers.{layer}"
        shapes |= {
            f"{at}.input_layernorm": (_HIDDEN,),
            f"{at}.post_attention_layernorm": (_HIDDEN,),
            f"{at}.self_attn.q_proj": (heads, _HIDDEN),
            f"{at}.self_attn.k_proj": (kv_heads, _HIDDEN),
            f"{at}.self_attn.v_proj": (kv_heads, _HIDDEN),
            f"{at}.self_attn.o_proj": (_HIDDEN, heads),
            f"{at}.mlp.gate_proj": (_INNER, _HIDDEN),
            f"{at}.mlp.up_proj": (_INNER, _HIDDEN),
            f"{at}.mlp.down_proj": (_HIDDEN, _INNER),
        }
    return {
        f"{name}.weight": np.ones(shape, np.float32)
        if len(shape) == 1
        else random.normal(0, 0.5, shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1))
