"""Who is doing what, in Redis: jobs, open shards, leases with epochs, and the checkpoints of single lines.

Owns every write to the ledger; each is one Lua script (`lua/*.lua`, schema in `register.lua`), so that it
happens whole or not at all, and each may be repeated when its answer was lost. An epoch is a fencing token: a
write that carries an old one is refused. Never reads the store: the store is the truth about finished parts.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

from jobs.errors import LeaseLostError, LedgerError, UnknownJobError
from jobs.records import JobSpec, JobState, JobStatus, Receipt, ShardRef, checked_job_id, checked_model_name
from jobs.settings import Settings

_LUA = Path(__file__).parent / "lua"
#: A worker whose heartbeat is older is not counted as living.
_WORKER_SILENCE_SECONDS = 30.0


class Refusal(msgspec.Struct, frozen=True):
    """Why a shard was not claimed: unknown, unopened, committed or leased."""

    reason: str


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """A shard held under a lease."""

    ref: ShardRef
    epoch: int
    #: How often the shard was begun, this time included; what was handed back does not count.
    attempt: int
    #: Empty while the job is wanted, else the state it is to end in.
    outcome: str


class Lease(IntEnum):
    """What a renewal found."""

    LOST = 0
    HELD = 1
    CALLED_OFF = 2


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A living worker as it describes itself."""

    name: str
    model: str
    group: str
    started_at: float
    #: Unix time of its last heartbeat by its own clock.
    seen_at: float


class Ledger:
    """The ledger under one key prefix. Safe to share between threads."""

    def __init__(self, client: redis.Redis, prefix: str, queue_prefix: str, place: str) -> None:
        self._redis = client
        self._prefix = prefix
        self._queue_prefix = queue_prefix
        self._place = place
        self._scripts = {name: client.register_script(source) for name, source in _sources().items()}

    @classmethod
    def open(cls, settings: Settings) -> "Ledger":
        """The ledger of `LONGHAUL_REDIS_URL`; nothing is contacted yet."""
        url = settings.redis_url.get_secret_value()
        try:
            client = redis.Redis.from_url(
                url,
                protocol=2,
                socket_connect_timeout=3,
                socket_timeout=5,
                socket_keepalive=True,
                retry=Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), 1),
            )
        except ValueError as error:
            raise LedgerError(f"LONGHAUL_REDIS_URL can not be read: {error}") from error
        return cls(client, settings.redis_prefix, queue_key(settings, ""), url.rpartition("@")[2])

    def ping(self) -> None:
        """`LedgerError` if Redis does not answer."""
        with self._translated():
            self._redis.ping()

    def close(self) -> None:
        """Give the connections back."""
        self._redis.close()

    # Jobs

    def register(self, spec: JobSpec) -> bool:
        """Make a job known; False if it was."""
        spec_json = msgspec.json.encode(spec)
        return bool(self._run("register", spec.id, spec.model, spec.priority.weight, spec.shards, spec_json))

    def dispatch(self, model: str, backlog: int) -> list[ShardRef]:
        """Open shards of the model's jobs, in fair turns, until `backlog` wait; the caller publishes them."""
        flat = self._run("dispatch", checked_model_name(model), backlog)
        return [ShardRef(job.decode(), int(shard)) for job, shard in zip(flat[::2], flat[1::2], strict=True)]

    def status(self, job_id: str) -> JobStatus:
        """The job's counts now; `UnknownJobError`."""
        answer = self._run("status", checked_job_id(job_id))
        if answer is None:
            raise UnknownJobError(f"no job {job_id} in the ledger at {self._place}")
        fields = {key.decode(): value for key, value in zip(answer[1::2], answer[2::2], strict=True)}
        return _status(fields, int(answer[0]))

    def jobs(self, limit: int = 50) -> list[JobStatus]:
        """The latest jobs, newest first."""
        with self._translated():
            ids: Any = self._redis.zrevrange(f"{self._prefix}:jobs", 0, limit - 1)
        return [self.status(job_id.decode()) for job_id in ids]

    def cancel(self, job_id: str) -> JobState:
        """Call a job off as the user wishes; its state afterwards. A job that has ended stays as it is."""
        return self.call_off(job_id, JobState.CANCELLED)

    def call_off(self, job_id: str, outcome: JobState) -> JobState:
        """Begin nothing more of a job, and let it end in the state `outcome`; its state now."""
        state = self._run("call_off", checked_job_id(job_id), outcome.value)
        if state is None:
            raise UnknownJobError(f"no job {job_id} in the ledger at {self._place}")
        return JobState(state.decode())

    def note(self, job_id: str, problem: str) -> None:
        """Write down what holds a job up; an empty text clears it."""
        self._run("note", checked_job_id(job_id), problem)

    # Shards

    def claim(self, ref: ShardRef, owner: str, lease_seconds: float) -> Claim | Refusal:
        """Take a shard under a new epoch. `owner` must be unique to the attempt."""
        answer = self._run("claim", *_ref(ref), owner, _ms(lease_seconds))
        if answer[0] != b"claimed":
            return Refusal(answer[0].decode())
        _, epoch, attempts, outcome = answer
        return Claim(ref=ref, epoch=int(epoch), attempt=int(attempts), outcome=outcome.decode())

    def renew(self, claim: Claim, lease_seconds: float) -> Lease:
        """Move the lease's deadline."""
        return Lease(self._run("renew", *_ref(claim.ref), claim.epoch, _ms(lease_seconds)))

    def checkpoint(self, claim: Claim, lines: Mapping[int, bytes]) -> None:
        """Keep finished output lines by their line numbers; `LeaseLostError` if the epoch is old."""
        flat: list[bytes | int] = [item for number, line in lines.items() for item in (number, line)]
        if not self._run("checkpoint", *_ref(claim.ref), claim.epoch, *flat):
            raise _lost(claim)

    def checkpoints(self, ref: ShardRef) -> dict[int, bytes]:
        """The lines of an open shard that are finished."""
        with self._translated():
            lines: Any = self._redis.hgetall(f"{self._prefix}:lines:{ref}")
        return {int(number): line for number, line in lines.items()}

    def commit(self, claim: Claim, receipt: Receipt, finalize_seconds: float) -> bool:
        """Count a shard whose part is in the store; True if the caller must now finalize the job.

        `LeaseLostError` if the epoch is old: the shard is another's, who will find the part.
        """
        result, _ = self._run(
            "commit",
            *_ref(claim.ref),
            claim.epoch,
            receipt.succeeded,
            receipt.failed,
            receipt.prompt_tokens,
            receipt.completion_tokens,
            _ms(receipt.device_seconds),
            _ms(finalize_seconds),
        )
        if result == 0:
            raise _lost(claim)
        return bool(result == 2)

    def release(self, claim: Claim, *, counts: bool) -> None:
        """Hand a shard back; `counts` says whether this was an attempt. With an old epoch nothing happens."""
        self._run("release", *_ref(claim.ref), claim.epoch, int(counts))

    # Putting right what died

    def reconcile(self, patience_seconds: float) -> list[tuple[str, ShardRef]]:
        """Expired leases become due; the hints to publish again, with their models."""
        flat = self._run("reconcile", _ms(patience_seconds), keys=(self._prefix, self._queue_prefix))
        pairs = zip(flat[::2], flat[1::2], strict=True)
        return [(model.decode(), ShardRef.parse(ref.decode())) for model, ref in pairs]

    def take_finalizing(self, lease_seconds: float) -> list[str]:
        """Jobs whose last shard is done and that nobody is finalizing: the caller is, from now on."""
        return [job_id.decode() for job_id in self._run("take_finalizing", _ms(lease_seconds))]

    def finish(self, job_id: str, state: JobState) -> bool:
        """Give a job its final state; False if another did."""
        return bool(self._run("finish", checked_job_id(job_id), state.value))

    # Workers

    def announce(self, worker: WorkerInfo) -> None:
        """A worker's heartbeat."""
        with self._translated():
            self._redis.hset(f"{self._prefix}:workers", worker.name, msgspec.json.encode(worker))

    def withdraw(self, name: str) -> None:
        """A worker that ends says so."""
        with self._translated():
            self._redis.hdel(f"{self._prefix}:workers", name)

    def workers(self) -> list[WorkerInfo]:
        """The workers heard of in the last half minute."""
        with self._translated():
            described = self._redis.hvals(f"{self._prefix}:workers")
            seconds, _ = self._redis.time()
        infos = (msgspec.json.decode(each, type=WorkerInfo) for each in described)
        return sorted(
            (info for info in infos if info.seen_at > seconds - _WORKER_SILENCE_SECONDS),
            key=lambda info: info.name,
        )

    def now(self) -> float:
        """The server's clock, Unix seconds: what deadlines are measured by."""
        with self._translated():
            seconds, microseconds = self._redis.time()
        return float(seconds) + float(microseconds) / 1e6

    def _run(self, name: str, *arguments: bytes | str | int, keys: tuple[str, ...] = ()) -> Any:
        with self._translated():
            return self._scripts[name](keys=keys or (self._prefix,), args=arguments)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (redis.RedisError, OSError) as error:
            raise LedgerError(f"Redis at {self._place} does not serve: {error}") from error


def queue_key(settings: Settings, model: str) -> str:
    """The Redis list that holds a model's messages; the broker's queue of the same name lies there."""
    return f"{settings.redis_prefix}:queue:{model}"


@cache
def _sources() -> dict[str, str]:
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(_LUA.glob("*.lua"))}


def _ref(ref: ShardRef) -> tuple[str, int]:
    return checked_job_id(ref.job), ref.shard


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _lost(claim: Claim) -> LeaseLostError:
    return LeaseLostError(f"shard {claim.ref} is no longer held under epoch {claim.epoch}")


def _status(fields: Mapping[str, bytes], checkpointed: int) -> JobStatus:
    def when(name: str) -> float | None:
        return int(fields[name]) / 1000 if name in fields else None

    return JobStatus(
        spec=msgspec.json.decode(fields["spec"], type=JobSpec),
        state=JobState(fields["state"].decode()),
        succeeded=int(fields["succeeded"]),
        failed=int(fields["failed"]),
        checkpointed=checkpointed,
        committed_shards=int(fields["committed"]),
        prompt_tokens=int(fields["prompt_tokens"]),
        completion_tokens=int(fields["completion_tokens"]),
        device_seconds=int(fields["device_ms"]) / 1000,
        outcome=fields["outcome"].decode(),
        started_at=when("started_ms"),
        finished_at=when("finished_ms"),
        problem=fields.get("problem", b"").decode() or None,
    )
