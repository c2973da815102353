"""What the fleet costs around the engine: `python -m benchmarks.fleet_costs drain|groups|resume|tax ...`.

  drain   one worker with an echo engine works off a job as fast as it can, store included
  groups  one group, then eight, with echo engines whose steps take modelled time
  resume  a worker is killed in the middle of a job and another finishes it: what was generated twice
  tax     the same dialogues through the bare engine and through the fleet, with a real model, in turn

Everything runs on this machine: a real Valkey, real workers as `worker up` starts them, a folder or a
SeaweedFS as the store. Prints one JSON line a measurement.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from jobs.dialogue import Sampling
from jobs.records import JobKeys, JobState, JobStatus
from producer.client import Client
from producer.submission import Order
from tests.fleet import Place
from tests.services import free_port, s3_server, valkey_server, wait_until


@contextmanager
def fleet(kind: str, **settings: str) -> Iterator[Place]:
    """Valkey and a store; `kind` is file or s3."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        valkey = stack.enter_context(valkey_server(folder / "valkey"))
        given = {"lease_seconds": "30", "reconcile_seconds": "2", "shard_lines": "256", **settings}
        store = f"file://{folder}/store"
        if kind == "s3":
            server = stack.enter_context(s3_server(folder / "s3"))
            store = server.url("bench")
            given |= {
                key.removeprefix("LONGHAUL_").lower(): value for key, value in server.environment.items()
            }
        model = Path(given.pop("model", "."))
        yield Place.at(folder, redis=valkey.url, store=store, model=model, **given)


def dialogues(path: Path, lines: int, characters: int) -> Path:
    """A file of so many dialogues, each of so many characters."""
    with path.open("w") as file:
        for number in range(lines):
            text = f"{number} ".ljust(characters, "x")[:characters]
            content = [{"role": "user", "content": text}]
            file.write(json.dumps({"custom_id": f"d{number}", "messages": content}) + "\n")
    return path


def finished(client: Client, job: str) -> JobStatus:
    """The job when it has ended, watched as a producer does; it must have answered every line."""
    *_, status = client.watch(job)
    assert (status.state, status.succeeded) == (JobState.COMPLETED, status.spec.lines), status
    return status


def seconds_of(status: JobStatus) -> float:
    """From its first claim to its end."""
    assert status.started_at is not None
    assert status.finished_at is not None
    return status.finished_at - status.started_at


def submitted(client: Client, path: Path, model: str = "echo", **sampling: object) -> str:
    order = Order(sources=(str(path),), model=model, sampling=Sampling(**sampling))  # type: ignore[arg-type]
    return client.submit(order).spec.id


def drain(kind: str, lines: int, characters: int) -> dict[str, object]:
    with fleet(kind, model_name="echo", shards_in_flight="4") as place, place.client() as client:
        path = dialogues(place.folder / "in.jsonl", lines, characters)
        with place.worker("echo:0") as worker:
            worker.wait_for("worker ready")
            status = finished(client, submitted(client, path))
            memory = psutil.Process(worker.process.pid).children()[0].memory_info().rss
        seconds = seconds_of(status)
        return {
            "what": "drain",
            "store": kind,
            "lines": lines,
            "seconds": round(seconds, 2),
            "lines_per_second": round(lines / seconds),
            "worker_rss_mb": round(memory / 1e6),
        }


def groups(count: int, lines: int, tokens: int, step_seconds: float) -> dict[str, object]:
    """Every line takes `tokens` steps; an engine runs 64 at once."""
    settings = {
        "model_name": "echo",
        "shard_lines": "64",
        "max_num_seqs": "64",
        "backlog": "32",
        "echo_step_seconds": str(step_seconds),
    }
    with fleet("file", **settings) as place, place.client() as client:
        path = dialogues(place.folder / "in.jsonl", lines, tokens)
        with place.worker(";".join(f"echo:{number}" for number in range(count))) as worker:
            worker.wait_for("worker ready", count=count)
            seconds = seconds_of(finished(client, submitted(client, path)))
        return {"what": "groups", "groups": count, "lines": lines, "seconds": round(seconds, 2)}


def resume(lines: int, tokens: int, step_seconds: float) -> dict[str, object]:
    """Tokens of lines, by whom: what the first had kept when it was killed, what the second generated."""
    settings = {
        "model_name": "echo",
        "shard_lines": "64",
        "max_num_seqs": "64",
        "echo_step_seconds": str(step_seconds),
        "lease_seconds": "2",
        "reconcile_seconds": "0.5",
    }
    with fleet("file", **settings) as place, place.client() as client:
        path = dialogues(place.folder / "in.jsonl", lines, tokens)
        port = free_port()
        with place.worker("echo:0", name="first") as first:
            first.wait_for("worker ready")
            job = submitted(client, path)
            wait_until(
                lambda: client.status(job).done_lines >= lines // 2, seconds=600, what="half of the job"
            )
            first.sigkill()
        kept = client.status(job).completion_tokens
        second = Place({**place.environment, "LONGHAUL_METRICS_PORT": str(port)}, place.folder)
        with second.worker("echo:0", name="second") as worker:
            worker.wait_for("worker ready")
            status = finished(client, job)
            generated = counter(port, "longhaul_generated_tokens_total")
        totals = json.loads(place.store.get(JobKeys(job).manifest))["totals"]
        return {
            "what": "resume",
            "tokens": status.completion_tokens,
            "kept_at_kill": kept,
            "generated_by_the_second": generated,
            "kept_and_generated_again": generated - (status.completion_tokens - kept),
            "in_flight_at_most": 64 * tokens,
            "device_seconds": totals["device_seconds"],
            "wasted_device_seconds": totals["wasted_device_seconds"],
        }


def counter(port: int, name: str) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    return sum(int(float(line.rpartition(" ")[2])) for line in text.splitlines() if line.startswith(name))


@dataclass(frozen=True, kw_only=True)
class Work:
    """What the bare engine and the fleet both do."""

    model: Path
    source: Path
    lines: int
    max_tokens: int
    dtype: str
    cpus: str


def tax(work: Work) -> dict[str, object]:
    """Bare engine, fleet, bare engine: tokens/s of each, the engine's start in none."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "in.jsonl"
        path.write_text("".join(work.source.read_text().splitlines(keepends=True)[: work.lines]))
        before, through, after = bare(work, path), through_fleet(work, path), bare(work, path)
    assert before["tokens"] == through["tokens"] == after["tokens"], "they did different work"
    mean = (before["tokens_per_second"] + after["tokens_per_second"]) / 2
    return {
        "what": "tax",
        "bare": [before, after],
        "fleet": through,
        "ratio": round(through["tokens_per_second"] / mean, 4),
    }


def bare(work: Work, path: Path) -> dict[str, float]:
    """In a process of its own, bound to the same CPUs as the fleet's engine."""
    options = [work.model, path, str(work.max_tokens), work.dtype, work.cpus]
    command = [sys.executable, "-m", "benchmarks.bare_engine", *options]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def through_fleet(work: Work, path: Path) -> dict[str, float]:
    settings = {"model": str(work.model), "model_name": "real", "dtype": work.dtype}
    with (
        fleet("file", kv_cache_bytes=str(2 << 30), **settings) as place,
        place.client() as client,
        place.worker(f"cpu:{work.cpus}") as worker,
    ):
        worker.wait_for("worker ready", seconds=300)
        job = submitted(
            client, path, model="real", max_tokens=work.max_tokens, temperature=0.0, ignore_eos=True
        )
        status = finished(client, job)
        seconds = seconds_of(status)
        return {
            "tokens": status.completion_tokens,
            "seconds": round(seconds, 2),
            "tokens_per_second": round(status.completion_tokens / seconds, 1),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    kinds = parser.add_subparsers(dest="what", required=True)
    one = kinds.add_parser("drain")
    one.add_argument("--store", choices=["file", "s3"], default="s3")
    one.add_argument("--lines", type=int, default=200_000)
    one.add_argument("--characters", type=int, default=200)
    many = kinds.add_parser("groups")
    many.add_argument("--lines", type=int, default=7680)
    again = kinds.add_parser("resume")
    again.add_argument("--lines", type=int, default=2048)
    cost = kinds.add_parser("tax")
    cost.add_argument("model", type=Path)
    cost.add_argument("source", type=Path)
    cost.add_argument("--lines", type=int, default=1000)
    cost.add_argument("--max-tokens", type=int, default=64)
    cost.add_argument("--dtype", default="bfloat16")
    cost.add_argument("--cpus", default="0-1")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    started = time.monotonic()
    match given.what:
        case "drain":
            found = [drain(given.store, given.lines, given.characters)]
        case "groups":
            found = [groups(count, given.lines, 50, 0.02) for count in (1, 8)]
            ratio = float(str(found[0]["seconds"])) / float(str(found[1]["seconds"]))
            found.append({"what": "groups", "ratio": round(ratio, 2)})
        case "resume":
            found = [resume(given.lines, 50, 0.02)]
        case _:
            del given.what
            found = [tax(Work(**vars(given)))]
    for each in found:
        print(json.dumps(each))
    print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
