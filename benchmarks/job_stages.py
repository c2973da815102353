"""Where the time of a job goes, by stages: `job_stages.py MODEL [FILE] [MAX_TOKENS]`.

Runs `producer submit FILE --local` as a user does and cuts it up by the worker's log.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

#: Each stage ends with an entry of the worker's log: the first of its kind, or the last.
STAGES = (
    ("producer, Valkey and supervisor start", "worker process started", 0),
    ("worker starts: imports, Redis, store, tokenizer", "engine started", 0),
    ("engine starts: imports torch, reads the weights", "engine ready", 0),
    ("job is submitted and its first shard begun", "shard begun", 0),
    ("generation, post-processing, commits", "shard committed", -1),
    ("manifest and final state", "job ended", -1),
)


def run(model: str, source: str, max_tokens: str) -> tuple[float, list[dict[str, str]], float]:
    """When the command started, what its worker logged, and when it ended; Unix times."""
    with tempfile.TemporaryDirectory() as folder:
        command = [Path(sys.executable).with_name("producer"), "submit", source, "--local", "--model", model]
        options = ["--max-tokens", max_tokens, "--output", f"{folder}/out.jsonl", "--json"]
        started = time.time()
        subprocess.run(
            [*command, *options],
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "LONGHAUL_LOCAL_DIR": folder},
        )
        ended = time.time()
        log = next(Path(folder).glob("runs/*/worker.log")).read_text()
    return started, [json.loads(line) for line in log.splitlines() if line.startswith("{")], ended


def main(model: str, source: str = "examples/dialogues.jsonl", max_tokens: str = "96") -> None:
    clock, events, ended = run(model, source, max_tokens)
    whole = ended - clock
    for name, mark, place in STAGES:
        entry = [event for event in events if event["event"] == mark][place]
        at = datetime.fromisoformat(entry["timestamp"]).timestamp()
        print(f"{at - clock:8.2f} s  {(at - clock) / whole:6.1%}  {name}")
        clock = at
    print(f"{ended - clock:8.2f} s  {(ended - clock) / whole:6.1%}  results written, fleet stopped")
    print(f"{whole:8.2f} s  100.0%  whole command")


if __name__ == "__main__":
    main(*sys.argv[1:])
