"""Cost of a token by its context: `context_cost.py MODEL DTYPE [LONGEST]`.

Prefills one prompt of LONGEST tokens (32,768) in chunks of 1,024 and prints, at contexts of 1K, 2K, 4K, ...,
the microseconds a token takes in attention and in everything else; then the same for decoded tokens, of 16
sequences that share the context.
"""

import random
import sys
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from model import Engine, EngineConfig, Request, SamplingParams

CHUNK, SEQUENCES, STEPS = 1024, 16, 8


class Clock:
    """Time spent in the device's attention."""

    def __init__(self, engine: Engine) -> None:
        self.seconds = 0.0
        decoder = engine._runner.decoder
        prepare = decoder.device.attention
        decoder.device = _Patched(decoder.device, lambda *given: self._timed(prepare(*given)))  # type: ignore[assignment]

    def _timed(self, attend: Any) -> Any:
        def call(*given: Tensor) -> Tensor:
            start = time.perf_counter()
            out: Tensor = attend(*given)
            self.seconds += time.perf_counter() - start
            return out

        return call


class _Patched:
    def __init__(self, device: Any, attention: Any) -> None:
        self._device = device
        self.attention = attention

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)


def timed_step(engine: Engine, clock: Clock, tokens: int) -> tuple[float, float]:
    """Microseconds per token in attention and in the rest."""
    before, start = clock.seconds, time.perf_counter()
    engine.step()
    whole, attention = time.perf_counter() - start, clock.seconds - before
    return attention / tokens * 1e6, (whole - attention) / tokens * 1e6


def main(path: str, dtype: str, longest: int) -> None:
    config = EngineConfig(
        path=Path(path),
        dtype=dtype,  # type: ignore[arg-type]
        max_model_len=longest + 4 * STEPS,
        max_num_seqs=SEQUENCES,
        max_step_tokens=CHUNK,
        kv_cache_bytes=4 << 30,
    )
    engine = Engine(config)
    clock = Clock(engine)
    random.seed(0)
    prompt = tuple(random.randrange(100, 40000) for _ in range(longest))  # noqa: S311
    greedy = SamplingParams(max_tokens=2 * STEPS, temperature=0, ignore_eos=True)
    engine.add(Request(id="long", prompt_token_ids=prompt, params=greedy))
    for context in range(CHUNK, longest + 1, CHUNK):
        attention, rest = timed_step(engine, clock, CHUNK)
        if context & (context - 1) == 0:
            print(f"RESULT prefill context={context} attention_us={attention:.1f} rest_us={rest:.1f}")
    engine.abort("long")
    length = CHUNK
    while length <= longest:
        for number in range(SEQUENCES):
            engine.add(
                Request(id=str(number), prompt_token_ids=(*prompt[:length], 5 + number), params=greedy)
            )
        while engine.stats().waiting or len(engine.progress(str(SEQUENCES - 1))) == 0:
            engine.step()
        taken = [timed_step(engine, clock, SEQUENCES) for _ in range(STEPS)]
        attention, rest = (sorted(values)[STEPS // 2] for values in zip(*taken, strict=True))
        print(f"RESULT decode context={length} attention_us={attention:.1f} rest_us={rest:.1f}")
        for number in range(SEQUENCES):
            engine.abort(str(number))
        length *= 2


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 32768)
