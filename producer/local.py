"""A whole fleet on this machine for one job: an embedded Valkey, a folder as object storage, one worker.

Owns bringing it up, noticing when a piece of it dies, and taking it down. The worker is a process like any
other: nothing of it or of the engine is imported here.
"""

import importlib.util
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from jobs.records import JobStatus
from jobs.settings import Settings
from producer.client import Client
from producer.embedded import embedded_valkey
from producer.errors import LocalError, ModelError
from producer.processes import Child

#: For the worker to hand back what it has and to end its engine.
_STOP_SECONDS = 25.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalFleet:
    """Valkey and the store are up, the worker is not yet."""

    client: Client
    #: Name that jobs give for the model.
    model: str
    _worker_environment: dict[str, str]
    _folder: Path

    @contextmanager
    def worker(self) -> Iterator["Child"]:
        """A worker on this machine's devices, stopped at the end."""
        worker = Child(
            "worker",
            [sys.executable, "-m", "worker", "up"],
            log=self._folder / "worker.log",
            environment=self._worker_environment,
        )
        try:
            yield worker
        finally:
            worker.stop(_STOP_SECONDS)


@contextmanager
def local_fleet(
    settings: Settings, *, model: Path | None, store: Path | None, groups: str | None
) -> Iterator[LocalFleet]:
    """Everything but the worker; logs go to a folder of this run under the settings' `local_dir`."""
    if importlib.util.find_spec("worker") is None:
        raise LocalError("there is no worker on this machine", "pip install 'longhaul[worker,local]'")
    checkpoint = _checkpoint(model or settings.model)
    folder = settings.local_dir / "runs" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    folder.mkdir(parents=True)
    objects = (store or settings.local_dir / "store").resolve()
    with ExitStack() as stack:
        redis_url = stack.enter_context(embedded_valkey(folder))
        client = Client(
            settings.model_copy(update={"redis_url": SecretStr(redis_url), "store_url": f"file://{objects}"})
        )
        stack.callback(client.close)
        name = settings.model_name or re.sub(r"[^A-Za-z0-9._-]+|^[^A-Za-z0-9]+", "-", checkpoint.name).strip(
            "-"
        )
        yield LocalFleet(
            client=client,
            model=name,
            _worker_environment={
                "LONGHAUL_REDIS_URL": redis_url,
                "LONGHAUL_STORE_URL": f"file://{objects}",
                "LONGHAUL_MODEL": str(checkpoint),
                "LONGHAUL_MODEL_NAME": name,
                "LONGHAUL_DEVICE_GROUPS": groups or all_cpus(),
                "LONGHAUL_LOG_FORMAT": "json",
                # A folder called `model` or `worker` where the user stands is not our package.
                "PYTHONSAFEPATH": "1",
                # It is stopped when the job has ended or is not wanted: there is nothing to wait for.
                "LONGHAUL_DRAIN_SECONDS": "0",
            },
            _folder=folder,
        )


def while_alive(statuses: Iterator[JobStatus], worker: Child) -> Iterator[JobStatus]:
    """Pass statuses on; `LocalError` as soon as the worker is gone before the job's end."""
    for status in statuses:
        yield status
        if not status.state.final and not worker.alive:
            raise worker.death()


def all_cpus() -> str:
    """The device group of every CPU that this process may use."""
    cpus = (
        sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [*range(os.cpu_count() or 1)]
    )
    whole = cpus == [*range(cpus[0], cpus[-1] + 1)]
    return f"cpu:{cpus[0]}-{cpus[-1]}" if whole and len(cpus) > 1 else f"cpu:{','.join(map(str, cpus))}"


def _checkpoint(folder: Path | None) -> Path:
    """What can be said of a model's folder without reading the model."""
    if folder is None:
        raise ModelError("no model named", "give the folder of a checkpoint with --model")
    if not folder.is_dir():
        raise ModelError(f"{folder} is no folder", "--model needs the folder of a checkpoint with --local")
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has no config.json", "make a checkpoint with `model convert`")
    return folder.resolve()
