"""The engine beside vLLM and transformers on the same requests, in turn: `against_peers.py MODEL [OPTIONS]`.

Each side runs in a process of its own, A B C A B C: N requests of IN random token ids, OUT tokens each,
greedy, ignoring the end token, no prefix cache, after a warm-up. Starting is not counted. transformers runs
`generate` on one static batch. vLLM has its own environment: give its interpreter with --vllm, and what it is
to preload with --vllm-preload.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Prompts = list[list[int]]
#: Generates so many tokens for each prompt and returns how many there were in all.
Generate = Callable[[Prompts, int], int]


def longhaul(model: str, dtype: str, length: int) -> Generate:
    from model import LLM, SamplingParams  # noqa: PLC0415 - each side imports its own

    llm = LLM(model, dtype=dtype, max_model_len=length, prefix_caching=False)

    def generate(prompts: Prompts, count: int) -> int:
        params = SamplingParams(max_tokens=count, temperature=0, ignore_eos=True)
        return sum(len(one.token_ids) for one in llm.generate(prompts, params))

    return generate


def vllm(model: str, dtype: str, length: int) -> Generate:
    os.environ |= {
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "HF_HUB_OFFLINE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    from vllm import LLM, SamplingParams  # noqa: PLC0415

    llm: Any = LLM(
        model, dtype=dtype, max_model_len=max(2048, length), enable_prefix_caching=False, max_num_seqs=256
    )

    def generate(prompts: Prompts, count: int) -> int:
        params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
        requests = [{"prompt_token_ids": prompt} for prompt in prompts]
        return sum(len(one.outputs[0].token_ids) for one in llm.generate(requests, params, use_tqdm=False))

    return generate


def transformers(model: str, dtype: str, _length: int) -> Generate:
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    decoder: Any = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()

    def generate(prompts: Prompts, count: int) -> int:
        ids = torch.tensor(prompts)
        limits = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False}
        with torch.inference_mode():
            out = decoder.generate(ids, attention_mask=torch.ones_like(ids), **limits)
        return int(out.numel() - ids.numel())

    return generate


SIDES: dict[str, Callable[[str, str, int], Generate]] = {
    "longhaul": longhaul,
    "vllm": vllm,
    "transformers": transformers,
}


def run_side(options: argparse.Namespace) -> None:
    """Time one side in this process."""
    random.seed(0)
    draw = [[random.randrange(100, 40000) for _ in range(options.input)] for _ in range(options.n + 2)]  # noqa: S311
    generate = SIDES[options.side](options.model, options.dtype, options.input + options.output)
    generate(draw[options.n :], min(4, options.output))
    start = time.perf_counter()
    tokens = generate(draw[: options.n], options.output)
    seconds = time.perf_counter() - start
    assert tokens == options.n * options.output
    print(f"RESULT {options.side} {(tokens + options.n * options.input) / seconds:.1f}")


def measured(options: argparse.Namespace, side: str) -> float:
    """Tokens per second, in and out, of one side in a process of its own."""
    python, environment = sys.executable, dict(os.environ)
    if side == "vllm":
        python, environment = options.vllm, environment | {"LD_PRELOAD": options.vllm_preload}
    else:
        environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    done = subprocess.run(
        [python, __file__, *sys.argv[1:], "--side", side],
        env=environment, check=True, capture_output=True, text=True,
    )  # fmt: skip
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
    print(line, flush=True)
    return float(line.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a folder in Llama's layout, which all sides read")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--input", type=int, default=256)
    parser.add_argument("--output", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vllm", help="the Python that has vLLM; without it vLLM is left out")
    parser.add_argument("--vllm-preload", default="", help="libraries for vLLM's LD_PRELOAD")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        run_side(options)
        return
    sides = [side for side in SIDES if side != "vllm" or options.vllm]
    rounds = [{side: measured(options, side) for side in sides} for _ in range(options.rounds)]
    for side in sides[1:]:
        ratios = [one["longhaul"] / one[side] for one in rounds]
        each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"longhaul / {side}: {each}; median {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
