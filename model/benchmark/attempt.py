"""`python -m model.benchmark.attempt`: one round in a process of its own, for search.py.

A task as one JSON object on standard input; a Round, or {"code", "error"}, as the last line of output.
"""

import json
import sys
from dataclasses import asdict
from typing import Any

from model.benchmark.rounds import Round, dry_run, measure
from model.benchmark.workload import Lengths
from model.config import EngineConfig
from model.engine import Engine
from model.errors import ModelError


def main() -> None:
    """Do the task."""
    task: dict[str, Any] = json.load(sys.stdin)
    try:
        answer = asdict(_measure(task))
    except ModelError as error:
        answer = {"code": error.code, "error": str(error)}
    sys.stdout.write("\n" + json.dumps(answer) + "\n")


def _measure(task: dict[str, Any]) -> Round:
    lengths, batch_size = Lengths(*task["lengths"]), task["batch_size"]
    engine = Engine(EngineConfig(**task["config"]))
    try:
        dry_run(engine, batch_size, lengths.input)
        return measure(engine, model=task["model"], batch_size=batch_size, lengths=lengths, seed=task["seed"])
    finally:
        engine.close()


if __name__ == "__main__":
    main()
