"""modeltest's `performance_maxbs`: the largest batch that neither fails nor is slower than a limit.

Each try is a fresh process (attempt.py), so that one that runs out of memory is only a try that failed.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from model.benchmark.rounds import Round
from model.benchmark.workload import Lengths
from model.config import EngineConfig
from model.errors import PromptTooLong


@dataclass(frozen=True, slots=True, kw_only=True)
class Try:
    """One batch size of a search."""

    round: Round
    passed: bool


def largest(low: int, high: int, passes: Callable[[int], bool]) -> int:
    """The largest of low…high that passes, found by halving; 0 if none of those tried does."""
    best = 0
    while low <= high:
        middle = (low + high) // 2
        if passes(middle):
            best, low = middle, middle + 1
        else:
            high = middle - 1
    return best


def judge(one: Round, limit_ms: float) -> Try:
    """A round passes if its batch ran as one and its time per token after the first is within the limit."""
    if one.error is None and not one.whole:
        one = replace(
            one,
            error=f"the cache held {one.peak_running} of {one.batch_size} sequences at once"
            if one.peak_running < one.batch_size
            else f"the cache was too small: {one.preemptions} preemptions",
        )
    return Try(round=one, passed=one.error is None and one.decode_ms <= limit_ms)


def attempt(config: EngineConfig, model: str, batch_size: int, lengths: Lengths, seed: int) -> Round:
    """Measure one round in a process of its own; one that fails is a round with an error.

    Raises PromptTooLong where no batch of these lengths can run.
    """
    task = {
        "config": asdict(config) | {"path": str(config.path.resolve())},
        "model": model,
        "batch_size": batch_size,
        "lengths": lengths,
        "seed": seed,
    }
    package = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-P", "-m", "model.benchmark.attempt"],
        input=json.dumps(task),
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH")))),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        answer = json.loads(done.stdout.splitlines()[-1])
        if answer.get("code") == PromptTooLong.code:
            raise PromptTooLong(answer["error"])
        if "code" not in answer:
            return Round(**answer)
        why = answer["error"]
    elif done.returncode < 0:
        why = f"the process was killed by {signal.Signals(-done.returncode).name}: out of memory?"
    else:
        why = (done.stderr.strip().splitlines() or ["no word"])[-1]
    return Round(model=model, batch_size=batch_size, input=lengths.input, output=lengths.output, error=why)
