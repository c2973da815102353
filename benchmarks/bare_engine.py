"""Dialogues through the engine alone: `bare_engine.py MODEL FILE MAX_TOKENS DTYPE CPUS`.

Timed from the first dialogue that is encoded to the last answer, as a program does that has nothing but the
engine. Prints one JSON line.
"""

import json
import os
import sys
import time
from pathlib import Path


def main(model: str, source: str, max_tokens: str, dtype: str, cpus: str) -> None:
    first, _, last = cpus.partition("-")
    chosen = range(int(first), int(last or first) + 1)
    os.sched_setaffinity(0, chosen)
    os.environ["OMP_NUM_THREADS"] = str(len(chosen))
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    from jobs.dialogue import parse_line  # noqa: PLC0415 - after the threads are set
    from model import Engine, EngineConfig, Request, SamplingParams  # noqa: PLC0415

    engine = Engine(
        EngineConfig(path=model, dtype=dtype, kv_cache_bytes=2 << 30, num_threads=len(chosen))  # type: ignore[arg-type]
    )
    assert engine.chat is not None
    params = SamplingParams(max_tokens=int(max_tokens), temperature=0.0, ignore_eos=True)
    started = time.perf_counter()
    for number, line in enumerate(Path(source).read_bytes().splitlines(), start=1):
        turns = [
            {"role": turn.role, "content": turn.content}
            for turn in parse_line(line, number, 1 << 24).messages
        ]
        prompt = tuple(engine.chat.encode(turns))
        engine.add(Request(id=str(number), prompt_token_ids=prompt, params=params))
    tokens = 0
    while engine.has_unfinished:
        tokens += sum(len(done.token_ids) for done in engine.step())
    seconds = time.perf_counter() - started
    print(
        json.dumps(
            {"tokens": tokens, "seconds": round(seconds, 2), "tokens_per_second": round(tokens / seconds, 1)}
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
