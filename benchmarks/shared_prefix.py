"""The prefix cache's gain: `shared_prefix.py MODEL DTYPE [OUT ...]`.

64 requests of one 512-token instruction and 128 tokens of their own, OUT tokens out (16 and 64), greedy,
without and with the prefix cache, in turn: A B A B. Prints one RESULT line for each.
"""

import random
import sys
import time

from model import LLM, SamplingParams

REQUESTS, SHARED, OWN = 64, 512, 128


def measure(path: str, dtype: str, generated: int, *, prefix_caching: bool) -> float:
    random.seed(0)
    draw = lambda count: [random.randrange(100, 40000) for _ in range(count)]  # noqa: E731, S311
    instruction = draw(SHARED)
    prompts = [instruction + draw(OWN) for _ in range(REQUESTS)]
    params = SamplingParams(max_tokens=generated, temperature=0, ignore_eos=True)
    length = SHARED + OWN + generated
    with LLM(path, dtype=dtype, max_model_len=length, prefix_caching=prefix_caching) as llm:
        llm.generate([draw(OWN)] * 2, SamplingParams(max_tokens=2, temperature=0, ignore_eos=True))
        start = time.perf_counter()
        completions = llm.generate(prompts, params)
        seconds = time.perf_counter() - start
        cached = sum(completion.cached_tokens for completion in completions)
    print(
        f"RESULT prefix_caching={prefix_caching} out={generated} seconds={seconds:.2f} cached={cached} "
        f"total_tok_s={REQUESTS * length / seconds:.1f}"
    )
    return seconds


def main(path: str, dtype: str, lengths: list[int]) -> None:
    for generated in lengths:
        ratios = []
        for _ in range(2):
            without = measure(path, dtype, generated, prefix_caching=False)
            ratios.append(without / measure(path, dtype, generated, prefix_caching=True))
        print(f"RESULT out={generated} ratio=" + ", ".join(f"{ratio:.2f}" for ratio in ratios))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], [int(text) for text in sys.argv[3:]] or [16, 64])
