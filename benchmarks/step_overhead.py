"""What a step costs outside the decoder: `step_overhead.py MODEL [SEQUENCES] [WAITING ...]`.

Decodes with SEQUENCES running (64) while WAITING more requests wait (10, 1,000, 10,000), and prints for each
the median milliseconds of a step, of the decoder inside it, and of the rest: scheduling, packing, sampling,
answers.
"""

import random
import statistics
import sys
import time
from pathlib import Path

from torch import Tensor

from model import Engine, EngineConfig, Request, SamplingParams
from model.batch import Batch

PROMPT, STEPS = 64, 40


def main(path: str, sequences: int, waiting: int) -> None:
    config = EngineConfig(path=Path(path), max_num_seqs=sequences, max_model_len=PROMPT + 2 * STEPS)
    engine = Engine(config)
    random.seed(0)
    params = SamplingParams(max_tokens=2 * STEPS, temperature=0, ignore_eos=True)
    for number in range(sequences + waiting):
        prompt = tuple(random.randrange(100, 400) for _ in range(PROMPT))  # noqa: S311
        engine.add(Request(id=str(number), prompt_token_ids=prompt, params=params))
    lead, inside = engine._runner.lead, 0.0

    def timed(batch: Batch) -> Tensor:
        nonlocal inside
        start = time.perf_counter()
        logits = lead(batch)
        inside += time.perf_counter() - start
        return logits

    engine._runner.lead = timed  # type: ignore[method-assign]
    while engine.stats().generated_tokens < sequences * 2:
        engine.step()
    steps, decoder = [], []
    for _ in range(STEPS):
        before, start = inside, time.perf_counter()
        engine.step()
        steps.append(time.perf_counter() - start)
        decoder.append(inside - before)
    assert engine.stats().running == sequences
    rest = statistics.median(step - part for step, part in zip(steps, decoder, strict=True))
    whole = statistics.median(steps)
    print(
        f"RESULT sequences={sequences} waiting={waiting} step_ms={whole * 1e3:.2f} "
        f"decoder_ms={statistics.median(decoder) * 1e3:.2f} rest_ms={rest * 1e3:.2f} share={rest / whole:.1%}"
    )


if __name__ == "__main__":
    for many in map(int, sys.argv[3:] or ("10", "1000", "10000")):
        main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 64, many)
