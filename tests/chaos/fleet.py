"""A fleet under chaos: worker processes behind fault proxies, started again whenever they die.

Owns the processes, the proxies, what was injected, and the story that a failure tells. Each worker is a real
`python -m worker.process 0` with an echo engine unless said otherwise; the fleet is its supervisor. Never
decides which fault comes next, and never judges a job's outcome.
"""

import fcntl
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TextIO

from jobs.errors import JobsError
from jobs.records import JobStatus
from jobs.settings import Settings
from producer.client import Client
from producer.submission import Order
from tests.chaos.events import Events
from tests.chaos.http_faults import RequestFaults
from tests.chaos.proxy import Proxy
from tests.chaos.work import Work
from tests.chaos.workers import Worker, kill_ours, send
from tests.services import S3, Valkey, tail

INJECTED: Final = Path(__file__).with_name("injected")
#: What jobs ask for, whatever engine it is.
MODEL: Final = "chaos"
#: How long anything may take before it counts as never.
LIMIT: Final = 60.0

#: What every worker of a fleet has; a scenario's own come on top.
SETTINGS: Final = {
    "device_groups": "echo:0",
    "model_name": MODEL,
    "echo_step_seconds": "0.004",
    "max_num_seqs": "8",
    "lease_seconds": "1",
    "reconcile_seconds": "0.2",
    "engine_hang_seconds": "1",
    "shard_lines": "8",
    "backlog": "4",
    "log_level": "debug",
}
#: Constants of modules that would make a test wait for half a minute.
CONSTANTS: Final = {"worker.manifest.FINALIZE_SECONDS": "2"}


@dataclass(frozen=True, slots=True)
class Services:
    """Redis and a store that fleets share one after another."""

    valkey: Valkey
    s3: S3


@dataclass
class Job:
    """A job that the fleet does."""

    id: str
    work: Work


@dataclass
class Fleet:
    """Workers, services and jobs of one scenario."""

    services: Services
    folder: Path
    seed: int
    settings: dict[str, str]
    constants: Mapping[str, str]
    store_url: str | None = None
    requests: RequestFaults = field(default_factory=RequestFaults)
    workers: list[Worker] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)
    #: What was injected from outside, in order; what struck inside the processes is in the events.
    injected: list[str] = field(default_factory=list)
    #: When Redis lost what it had acknowledged, by the monotonic clock.
    losses: list[float] = field(default_factory=list)
    #: When the ledger was made anew.
    rebuilds: list[float] = field(default_factory=list)
    #: Further variables of every process.
    environment: dict[str, str] = field(default_factory=dict)
    redis: Proxy = field(init=False)
    store: Proxy = field(init=False)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)  # noqa: S311 - chance, not secrecy
        self.events = Events(self.folder / "events.jsonl")
        self.prefix = self.folder.name
        self.redis = Proxy(self.services.valkey.port)
        self.store = Proxy(int(self.services.s3.endpoint.rpartition(":")[2]), requests=self.requests)
        self._asleep: dict[int, float] = {}
        self._woken = 0

    def direct(self) -> Settings:
        """The settings of whoever looks on: past the proxies."""
        services = self.services
        given = {
            **{
                key.removeprefix("LONGHAUL_").lower(): value for key, value in services.s3.environment.items()
            },
            **self.settings,
            "redis_url": services.valkey.url,
            "redis_prefix": self.prefix,
            "store_url": self.store_url or services.s3.url(self.prefix),
        }
        return Settings(**given)  # type: ignore[arg-type]

    @property
    def client(self) -> Client:
        """A producer that no fault meets."""
        return self._client

    @contextmanager
    def running(self) -> Iterator["Fleet"]:
        """Proxies and a producer; at the end, whatever still lives dies."""
        with self.redis, self.store:
            self._client = Client(self.direct())
            try:
                yield self
            finally:
                self._client.close()
                for worker in self.workers:
                    worker.end()
                kill_ours({event.pid for event in self.events.all()}, self.folder)

    # Workers

    def start(self, count: int = 1, **more: str) -> list[Worker]:
        """So many further workers, with `more` in their environment."""
        environment = self.worker_environment() | more
        started = [
            Worker(f"worker {number}", self.folder / f"worker-{number}.log", environment)
            for number in range(len(self.workers), len(self.workers) + count)
        ]
        self.workers += started
        return started

    def tend(self) -> None:
        """Start again what died, and wake what has slept long enough."""
        for worker in self.workers:
            if worker.dead and not worker.resting:
                self.arm("worker", self.events.armed(worker.pid))  # what it took and did not come to
                worker.start()
        stops = [event for event in self.events.named("fired") if event.point.endswith(":stop")]
        for event in stops[self._woken :]:
            self.sleeps(event.pid)
        self._woken = len(stops)
        self._wake()

    def _wake(self) -> None:
        """Whoever has slept long enough goes on."""
        now = time.monotonic()
        for pid in [pid for pid, until in self._asleep.items() if until <= now]:
            del self._asleep[pid]
            send(pid, signal.SIGCONT)

    def sleeps(self, pid: int, seconds: float | None = None) -> None:
        """A process is suspended; wake it after its lease has run out."""
        lease = float(self.settings["lease_seconds"])
        self._asleep[pid] = time.monotonic() + (1.5 * lease if seconds is None else seconds)

    def living(self) -> list[Worker]:
        """Workers that run and are awake."""
        return [each for each in self.workers if not each.dead and each.pid not in self._asleep]

    def rest(self, worker: Worker, *, seconds: float = 20) -> int:
        """Drain a worker for good; its exit status."""
        worker.resting = True
        worker.process.terminate()
        self.until(lambda: worker.dead, f"{worker.name} to drain", seconds=seconds)
        return worker.process.returncode

    def rebuild(self) -> None:
        """`worker rebuild --all`, as often as it takes: a ledger that was lost is made anew."""
        while self._run_rebuild():
            pass

    def _run_rebuild(self) -> int:
        log = self.folder / "rebuild.log"
        command = [sys.executable, "-P", "-m", "worker", "rebuild", "--all"]
        self.rebuilds.append(time.monotonic())
        with log.open("ab") as out:
            process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, env=self.worker_environment()
            )
        self.until(lambda: process.poll() is not None, f"the rebuild to end: see {log}")
        return process.returncode

    # Jobs

    def submit(self, work: Work) -> Job:
        """A new job."""
        path = work.write(self.folder / f"input-{len(self.jobs)}.jsonl")
        job = Job(self.client.submit(Order(sources=(str(path),), model=MODEL)).spec.id, work)
        self.jobs.append(job)
        return job

    def status(self, job: Job) -> JobStatus | None:
        """The job now; None while Redis is away or has lost it."""
        try:
            return self.client.status(job.id)
        except JobsError:
            return None

    def unfinished(self) -> list[Job]:
        """Jobs that have not ended as far as is known."""
        statuses = ((job, self.status(job)) for job in self.jobs)
        return [job for job, status in statuses if status is None or not status.state.final]

    def finish(self, *, seconds: float = LIMIT) -> None:
        """Wait until every job has ended and no process sleeps."""
        self.until(lambda: not self.unfinished() and not self._asleep, "every job to end", seconds=seconds)

    # Time

    def until(self, reached: Callable[[], bool], what: str, *, seconds: float = LIMIT) -> None:
        """Tend the fleet until something is so; the whole story if it never is."""
        limit = time.monotonic() + seconds
        while not reached():
            self.tend()
            if time.monotonic() > limit:
                raise AssertionError(f"waited {seconds:g} s in vain for {what}\n{self.story()}")
            time.sleep(0.01)

    def hold(self, seconds: float) -> None:
        """Let a fault last."""
        until = time.monotonic() + seconds
        self.until(lambda: time.monotonic() >= until, "time to pass")

    def progress(self, lines: int) -> None:
        """Wait until so many lines more have been answered, or there is nothing left to do."""
        goal = self.events.answered + lines
        self.until(lambda: self.events.answered >= goal or not self.unfinished(), f"{lines} more lines")

    def struck(self, faults: int) -> None:
        """Wait until so many faults have struck inside the processes, one way or another."""
        self.until(lambda: len(self.events.fired()) >= faults, f"{faults} faults to strike")

    # Faults

    def note(self, fault: str) -> None:
        """A fault is being injected from outside."""
        self.injected.append(fault)

    def arm(self, role: str, points: Sequence[str]) -> None:
        """Have the worker or engine processes suffer these, one after another."""
        with (self.folder / f"points.{role}").open("a") as file:
            while not _locked(file):
                self._wake()  # a process may have been suspended while it had the lock
                time.sleep(0.01)
            file.writelines(f"{point}\n" for point in points)

    @property
    def faults(self) -> int:
        """How many have been injected, outside and inside."""
        return len(self.injected) + len(self.events.fired())

    def story(self) -> str:
        """What a failure has to say: the seed, the faults, the jobs, and where the logs are."""
        unfinished = self.unfinished()
        lines = [
            f"seed {self.seed}, logs in {self.folder}",
            "injected from outside: " + ("; ".join(self.injected) or "nothing"),
            "struck inside: " + ("; ".join(self.events.fired()) or "nothing"),
            "still armed inside: " + ("; ".join(self.events.armed()) or "nothing"),
            f"{len(self.jobs)} jobs, {len(unfinished)} of them have not ended",
            *(f"{job.id}: {_described(self.status(job))}" for job in unfinished),
        ]
        logs = (f"{each.name}, which ended with {each.exits}:\n{tail(each.log, 8)}" for each in self.workers)
        return "\n".join([*lines, *logs])

    # Processes

    def worker_environment(self) -> dict[str, str]:
        """Of a process that works behind the proxies and suffers what is armed."""
        s3 = self.services.s3.environment
        proxied = {
            "LONGHAUL_REDIS_URL": f"redis://127.0.0.1:{self.redis.port}/0",
            "LONGHAUL_REDIS_PREFIX": self.prefix,
            "LONGHAUL_STORE_URL": self.store_url or self.services.s3.url(self.prefix),
            "LONGHAUL_S3_ENDPOINT": f"http://127.0.0.1:{self.store.port}",
        }
        return {
            **os.environ,
            **s3,
            **{f"LONGHAUL_{name.upper()}": value for name, value in self.settings.items()},
            **proxied,
            **injected(self.folder, self.constants),
            **self.environment,
        }


def injected(folder: Path, constants: Mapping[str, str]) -> dict[str, str]:
    """Variables of processes that have these constants, and suffer what is armed in the folder."""
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(INJECTED), os.environ.get("PYTHONPATH")))),
        "CHAOS_FOLDER": str(folder),
        "CHAOS_CONSTANTS": " ".join(f"{name}={value}" for name, value in constants.items()),
    }


def _locked(file: TextIO) -> bool:
    """Whether the file's lock is ours now."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _described(status: JobStatus | None) -> str:
    if status is None:
        return "unknown"
    return (
        f"{status.state}, {status.succeeded} lines succeeded, {status.failed} failed, {status.checkpointed} "
        f"checkpointed, of {status.spec.lines}; {status.committed_shards} of {status.spec.shards} shards; "
        f"problem: {status.problem}"
    )


def fleet(
    services: Services,
    folder: Path,
    seed: int,
    settings: Mapping[str, str],
    *,
    constants: Mapping[str, str] = CONSTANTS,
    store_url: str | None = None,
) -> Fleet:
    """A fleet in `folder`, whose name is its own in Redis and in the store."""
    folder.mkdir(parents=True, exist_ok=True)
    return Fleet(
        services=services,
        folder=folder,
        seed=seed,
        settings=SETTINGS | dict(settings),
        constants=constants,
        store_url=store_url,
    )
