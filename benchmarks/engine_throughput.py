"""Tokens per second of the engine on random prompts: `engine_throughput.py MODEL DTYPE N IN OUT`.

N requests of IN random token ids (seed 0), OUT tokens each, greedy, ignoring the end token, no prefix
cache. Prints one RESULT line; loading and a warm-up of two requests are not in it.
"""

import random
import sys
import time

from model import LLM, SamplingParams


def main(path: str, dtype: str, requests: int, length: int, generated: int) -> None:
    random.seed(0)
    prompts = [[random.randrange(100, 40000) for _ in range(length)] for _ in range(requests)]  # noqa: S311
    params = SamplingParams(max_tokens=generated, temperature=0, ignore_eos=True)
    with LLM(path, dtype=dtype, max_model_len=length + generated, prefix_caching=False) as llm:
        warmup = [prompt[::-1] for prompt in prompts[:2]]
        llm.generate(warmup, SamplingParams(max_tokens=min(4, generated), temperature=0, ignore_eos=True))
        start = time.perf_counter()
        completions = llm.generate(prompts, params)
        seconds = time.perf_counter() - start
        assert all(len(completion.token_ids) == generated for completion in completions)
    print(
        f"RESULT longhaul {dtype} cpu n={requests} in={length} out={generated} seconds={seconds:.2f} "
        f"out_tok_s={requests * generated / seconds:.1f} "
        f"total_tok_s={requests * (length + generated) / seconds:.1f}"
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]))
