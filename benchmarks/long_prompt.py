"""How long a prompt fits: seconds and peak memory of one prompt on a tiny made-up model, on one core.

    python -m benchmarks.long_prompt TOKENS [--chunk 2048] [--attention paged|flash]

The model has one layer of 32 columns, so what is measured is the engine's own memory: the cache (128 bytes
a token), the block table and the lists of tokens. Its config.json goes to 4,096 positions and is stretched by
rope_scaling="dynamic:2.0". tests/integration/test_engine_long.py holds the growth to a bound.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from model import LLM, SamplingParams

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INNER, VOCABULARY = 32, 2, 1, 16, 64, 64
MAX_POSITION = 4096
#: Keys and values of one token in float32.
TOKEN_BYTES = 2 * 4 * KV_HEADS * HEAD_DIM


def make_checkpoint(folder: Path, **config: object) -> Path:
    """A Llama of one layer."""
    random = np.random.default_rng(0)
    at = "model.layers.0"
    shapes = {
        "model.embed_tokens": (VOCABULARY, HIDDEN),
        "lm_head": (VOCABULARY, HIDDEN),
        "model.norm": (HIDDEN,),
        f"{at}.input_layernorm": (HIDDEN,),
        f"{at}.post_attention_layernorm": (HIDDEN,),
        f"{at}.self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
        f"{at}.self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
        f"{at}.self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
        f"{at}.self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
        f"{at}.mlp.gate_proj": (INNER, HIDDEN),
        f"{at}.mlp.up_proj": (INNER, HIDDEN),
        f"{at}.mlp.down_proj": (HIDDEN, INNER),
    }
    weights = {
        f"{name}.weight": np.ones(shape, np.float32)
        if len(shape) == 1
        else random.normal(0, 0.3, shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    settings = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": MAX_POSITION,
        "torch_dtype": "float32",
        "eos_token_id": 0,
        **config,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def prompt(tokens: int) -> list[int]:
    return np.random.default_rng(1).integers(1, VOCABULARY, tokens).tolist()


def peak_bytes() -> int:
    """The most memory that this program has had, in /proc; getrusage begins with what its parent had."""
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tokens", type=int)
    parser.add_argument("--chunk", type=int, default=2048)
    parser.add_argument("--attention", default="paged")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = make_checkpoint(Path(folder) / "model")
        with LLM(
            path,
            attention=options.attention,
            rope_scaling="dynamic:2.0",
            max_model_len=options.tokens + 16,
            max_num_seqs=1,
            max_step_tokens=options.chunk,
            num_threads=1,
        ) as llm:
            before, started = peak_bytes(), time.perf_counter()
            params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True, logprobs=0)
            (answer,) = llm.generate([prompt(options.tokens)], params)
            seconds = time.perf_counter() - started
    result = {
        "tokens": options.tokens,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(time.process_time(), 2),
        "peak_bytes": peak_bytes(),
        "peak_bytes_before": before,
        "cache_bytes": options.tokens * TOKEN_BYTES,
        "answer": answer.token_ids,
        "logprobs": [record.logprob for record in answer.logprobs or ()],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
