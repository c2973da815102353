"""Real worker processes for tests: started as users do, read by their JSON logs, killed as machines die."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from jobs.ledger import Ledger
from jobs.records import JobStatus
from jobs.settings import Settings
from jobs.storage import Store
from producer.client import Client
from tests.services import end, kill, spawn, tail, wait_until

Event = dict[str, Any]


class Worker:
    """`worker up` with its children."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log

    def events(self, name: str) -> list[Event]:
        """The log's entries of one kind so far."""
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # a library's plain line
            if isinstance(entry, dict) and entry.get("event") == name:
                found.append(entry)
        return found

    def wait_for(self, name: str, *, seconds: float = 120, count: int = 1) -> Event:
        """The first entry of a kind, once there are `count`; the log's end if it never comes."""
        try:
            wait_until(
                lambda: len(self.events(name)) >= count or self.process.poll() is not None,
                seconds=seconds,
                what=f"{name!r} in the worker's log",
            )
            return self.events(name)[0]
        except (TimeoutError, IndexError) as error:
            raise AssertionError(f"no {name!r}: {error}\n{tail(self.log, 40)}") from error

    @property
    def name(self) -> str:
        """How the worker calls itself in the ledger."""
        return str(self.wait_for("worker ready")["worker"])

    @property
    def engine_pid(self) -> int:
        """The latest engine's process."""
        self.wait_for("engine started")
        return int(self.events("engine started")[-1]["pid"])

    def sigkill(self) -> None:
        """The machine dies: supervisor and worker process at once; the engine notices by itself."""
        engine = self.engine_pid
        for child in psutil.Process(self.process.pid).children():
            child.send_signal(signal.SIGKILL)
        kill(self.process)
        wait_until(lambda: not _lives(engine), seconds=30, what="the engine to follow its worker")


@dataclass(frozen=True)
class Place:
    """Where a test's fleet meets: Redis, a store, a model, and a folder for logs."""

    environment: dict[str, str]
    folder: Path

    @classmethod
    def at(cls, folder: Path, *, redis: str, model: Path, store: str | None = None, **more: str) -> "Place":
        """Settings that suit tests: short leases, small shards, a small cache; `more` by plain names.

        The store is in the folder unless it is said where.
        """
        given = {
            "redis_url": redis,
            "store_url": store or f"file://{folder}/store",
            "model": str(model),
            "lease_seconds": "3",
            "reconcile_seconds": "0.5",
            "shard_lines": "8",
            "kv_cache_bytes": str(256 * 1024 * 1024),
            **more,
        }
        return cls({f"LONGHAUL_{name.upper()}": value for name, value in given.items()}, folder)

    @property
    def settings(self) -> Settings:
        """The same for this process."""
        fields = {key.removeprefix("LONGHAUL_").lower(): value for key, value in self.environment.items()}
        return Settings(**fields)  # type: ignore[arg-type]

    @property
    def store(self) -> Store:
        """The store the fleet shares."""
        return Store.open(self.settings)

    @contextmanager
    def client(self) -> Iterator[Client]:
        """A producer."""
        client = Client(self.settings)
        yield client
        client.close()

    def worker(self, groups: str = "cpu:0", name: str = "worker") -> AbstractContextManager[Worker]:
        """`worker up`, logging to `<name>.log`."""
        return running_worker(
            self.folder / f"{name}.log", {**self.environment, "LONGHAUL_DEVICE_GROUPS": groups}
        )


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def running_worker(log: Path, environment: Mapping[str, str]) -> Iterator[Worker]:
    """A worker that serves until the block ends."""
    quiet = {"LONGHAUL_LOG_FORMAT": "json", "TOKENIZERS_PARALLELISM": "false"}
    process = spawn(
        [sys.executable, "-m", "worker", "up"], log=log, environment={**os.environ, **quiet, **environment}
    )
    try:
        yield Worker(process, log)
    finally:
        end(process, seconds=60)


def wait_for_job(
    ledger: Ledger, job_id: str, reached: Callable[[JobStatus], bool], *, seconds: float, what: str
) -> JobStatus:
    """The job's status once it is as wanted."""
    wait_until(lambda: reached(ledger.status(job_id)), seconds=seconds, what=what)
    return ledger.status(job_id)
