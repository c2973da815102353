"""modeltest's `performance_maxbs`: the largest batch that neither fails nor is slower than a limit.

Each try is a fresh process (attempt.py), so that one that runs out of memory is only a try that failed.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
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
    """A round passes if it did not fail and its time per token after the first is within the limit."""
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
    status, answers, words = _in_a_process(json.dumps(task))
    if status == 0:
        answer = json.loads(answers.splitlines()[-1])
        if answer.get("code") == PromptTooLong.code:
            raise PromptTooLong(answer["error"])
        if "code" not in answer:
            return Round(**answer)
        why = answer["error"]
    elif status < 0:
        why = f"the process was killed by {signal.Signals(-status).name}"
        why += ": out of memory?" if -status == signal.SIGKILL else ""
    else:
        why = (words.strip().splitlines() or [f"the process ended with {status}"])[-1]
    return Round(model=model, batch_size=batch_size, input=lengths.input, output=lengths.output, error=why)


def _in_a_process(task: str) -> tuple[int, str, str]:
    """Exit status, output and error output of attempt.py, which ends when this process does."""
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [sys.executable, "-P", "-m", "model.benchmark.attempt"],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as child,
    ):
        assert child.stdin  # noqa: S101 - Popen was asked for pipes
        assert child.stdout  # noqa: S101
        try:
            child.stdin.write(task + "\n")
            child.stdin.flush()  # and stays open: its end is the end of the child
            answers = child.stdout.read()
        except BaseException:
            child.kill()
            raise
        child.wait()
        errors.seek(0)
        return child.returncode, answers, errors.read()
