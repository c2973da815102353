"""`python -m model.benchmark.attempt`: one round in a process of its own, for search.py.

A task as one line of JSON on standard input, which stays open for as long as an answer is wanted; a Round,
or {"code", "error"}, as the last line of output.
"""

import json
import os
import sys
from dataclasses import asdict
from typing import Any

from model.benchmark.rounds import Round, dry_run, measure
from model.benchmark.workload import Lengths
from model.config import EngineConfig
from model.engine import Engine
from model.errors import ModelError, RankError
from model.ranks import live_with_parent


def main() -> None:
    """Do the task."""
    task: dict[str, Any] = json.loads(live_with_parent())
    try:
        answer = asdict(_measure(task))
    except ModelError as error:
        answer = {"code": error.code, "error": str(error)}
    except (RuntimeError, MemoryError) as error:  # what torch raises where it gets no memory
        answer = {"code": RankError.code, "error": str(error).partition("\n")[0] or "out of memory"}
    sys.stdout.write("\n" + json.dumps(answer) + "\n")
    sys.stdout.flush()
    # Not by returning: the interpreter can not end in order while a thread waits for the input's end.
    os._exit(0)


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
