"""Who is doing what, in Redis: jobs, open shards, leases with epochs, and the checkpoints of single lines.

Owns every write to the ledger; each is one Lua script (`lua/*.lua`, schema in `_common.lua`), so that it
happens whole or not at all, and each may be repeated when its answer was lost. Epoch and owner are a fencing
token: a write that carries an old one is refused. Never reads the store: the store is the truth about
finished parts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from jobs.errors import LeaseLostError, UnknownJobError
from jobs.records import JobSpec, JobState, JobStatus, Receipt, ShardRef, checked_job_id, checked_model_name
from jobs.redis_client import RedisClient
from jobs.settings import Settings

#: A worker whose heartbeat is older is not counted as living.
_WORKER_SILENCE_SECONDS = 30.0
_DAY_SECONDS = 86400
#: Made here, before there are threads: msgspec's first decode of a type is not safe among several.
_spec = msgspec.json.Decoder(JobSpec)


class Refusal(msgspec.Struct, frozen=True):
    """Why no shard was claimed: unknown, unopened, committed or leased."""

    reason: str


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """A shard held under a lease."""

    ref: ShardRef
    #: Both fence the writes: epochs begin anew in a ledger that was lost, owners are never the same twice.
    epoch: int
    owner: str
    #: How often the shard was begun since a line of it was last finished, this time included; what was handed
    #: back does not count.
    attempt: int
    #: Empty while the job is wanted, else the state it is to end in.
    outcome: str
    #: The lines that an attempt tried apart from others when it died, as `first-last`; or empty.
    suspects: str = ""
    #: How often these were tried.
    trials: int = 0
    #: What checkpointed lines have cost, and what was lost with dead attempts.
    device_seconds: float = 0.0
    wasted_seconds: float = 0.0
    #: From the moment that the shard could be claimed.
    waited_seconds: float = 0.0


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """What some finished lines add up to."""

    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    device_seconds: float = 0.0
    wasted_seconds: float = 0.0


class Restored(msgspec.Struct, frozen=True, kw_only=True):
    """A job as the store has it, for a ledger that lost it."""

    spec: JobSpec
    #: in_progress, finalizing, or a final one.
    state: JobState
    #: The state that it is to end in where it was called off.
    outcome: str
    #: Sums over the parts that exist.
    committed: int
    succeeded: int
    failed: int
    prompt_tokens: int
    completion_tokens: int
    device_seconds: float
    wasted_seconds: float
    #: All shards from here on have no part.
    next: int
    #: Shards before it that have none.
    missing: Sequence[int]
    finished_at: float | None


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

    def __init__(self, settings: Settings) -> None:
        self._client = RedisClient(settings)
        self._redis = self._client.redis
        self._prefix = settings.redis_prefix
        self._queue_prefix = queue_key(settings, "")
        self._remember = round(settings.remember_days * _DAY_SECONDS)

    @classmethod
    def open(cls, settings: Settings) -> "Ledger":
        """The ledger of `LONGHAUL_REDIS_URL`; nothing is contacted yet."""
        return cls(settings)

    def ping(self) -> None:
        """`LedgerError` if Redis does not answer."""
        with self._client.translated():
            self._redis.ping()

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()

    # Jobs

    def register(self, spec: JobSpec) -> bool:
        """Make a job known; False if it was."""
        return bool(self._run("register", *_about(spec)))

    def restore(self, job: Restored) -> bool:
        """Make a job known as the store has it; False if it is known, whatever of it."""
        return bool(
            self._run(
                "restore",
                *_about(job.spec),
                job.state.value,
                job.outcome,
                job.next,
                job.committed,
                job.succeeded,
                job.failed,
                job.prompt_tokens,
                job.completion_tokens,
                _ms(job.device_seconds),
                _ms(job.wasted_seconds),
                _ms(job.spec.created_at),
                "" if job.finished_at is None else _ms(job.finished_at),
                self._remember,
                *job.missing,
            )
        )

    def dispatch(self, model: str, backlog: int) -> list[ShardRef]:
        """Open shards of the model's jobs until `backlog` wait; the caller publishes them."""
        flat = self._run("dispatch", checked_model_name(model), backlog)
        return [ShardRef(job.decode(), int(shard)) for job, shard in zip(flat[::2], flat[1::2], strict=True)]

    def status(self, job_id: str) -> JobStatus:
        """The job's counts now; `UnknownJobError`."""
        answer = self._run("status", checked_job_id(job_id))
        if answer is None:
            raise UnknownJobError(f"no job {job_id} in the ledger at {self._client.place}")
        return _status(answer)

    def jobs(self, limit: int = 50) -> list[JobStatus]:
        """The latest jobs, newest first; those that ended long ago are forgotten."""
        with self._client.translated():
            ids: Any = self._redis.zrevrange(f"{self._prefix}:jobs", 0, -1)
        found: list[JobStatus] = []
        for job_id in ids:
            if len(found) == limit:
                break
            try:
                found.append(self.status(job_id.decode()))
            except UnknownJobError:
                with self._client.translated():
                    self._redis.zrem(f"{self._prefix}:jobs", job_id)
        return found

    def remaining(self, model: str) -> tuple[int, int]:
        """The model's jobs that have not ended, and their lines that are in no committed part."""
        jobs, lines = self._run("backlog", checked_model_name(model))
        return int(jobs), int(lines)

    def cancel(self, job_id: str) -> JobState:
        """Call a job off as the user wishes; its state afterwards. A job that has ended stays as it is."""
        return self.call_off(job_id, JobState.CANCELLED)

    def call_off(self, job_id: str, outcome: JobState) -> JobState:
        """Begin nothing more of a job, and let it end in the state `outcome`; its state now."""
        state = self._run("call_off", checked_job_id(job_id), outcome.value)
        if state is None:
            raise UnknownJobError(f"no job {job_id} in the ledger at {self._client.place}")
        return JobState(state.decode())

    def note(self, job_id: str, problem: str) -> None:
        """Write down what holds a job up; an empty text clears it."""
        self._run("note", checked_job_id(job_id), problem)

    # Shards

    def claim(self, hint: ShardRef, owner: str, lease_seconds: float) -> Claim | Refusal:
        """Take a shard of the hint's model under a new epoch: of the job whose turn it is.

        `owner` must be unique to the attempt.
        """
        answer = self._run("claim", *_ref(hint), owner, _ms(lease_seconds))
        if answer[0] != b"claimed":
            return Refusal(answer[0].decode())
        _, job, shard, epoch, attempt, outcome, suspects, trials, device_ms, wasted_ms, waited_ms = answer
        return Claim(
            ref=ShardRef(job.decode(), int(shard)),
            epoch=int(epoch),
            owner=owner,
            attempt=int(attempt),
            outcome=outcome.decode(),
            suspects=suspects.decode(),
            trials=int(trials),
            device_seconds=int(device_ms) / 1000,
            wasted_seconds=int(wasted_ms) / 1000,
            waited_seconds=max(0, int(waited_ms)) / 1000,
        )

    def renew(self, claim: Claim, lease_seconds: float, unkept_seconds: float = 0.0) -> str | None:
        """Move the lease's deadline, and note the device time of lines that are not finished.

        None if the lease is lost, else what the job was called off for: empty while it is wanted.
        """
        outcome = self._run("renew", *_held(claim), _ms(lease_seconds), _ms(unkept_seconds))
        return None if outcome is None else outcome.decode()

    def checkpoint(self, claim: Claim, lines: Mapping[int, bytes], tally: Tally = Tally()) -> None:  # noqa: B008
        """Keep finished output lines by their line numbers; `LeaseLostError` if the lease is lost."""
        flat: list[bytes | int] = [item for number, line in lines.items() for item in (number, line)]
        sums = (tally.failed, tally.prompt_tokens, tally.completion_tokens)
        times = (_ms(tally.device_seconds), _ms(tally.wasted_seconds))
        if not self._run("checkpoint", *_held(claim), *sums, *times, *flat):
            raise _lost(claim)

    def checkpoints(self, ref: ShardRef) -> dict[int, bytes]:
        """The lines of an open shard that are finished."""
        with self._client.translated():
            lines: Any = self._redis.hgetall(f"{self._prefix}:lines:{ref}")
        return {int(number): line for number, line in lines.items()}

    def suspect(self, claim: Claim, lines: str) -> None:
        """Write down which lines are tried apart, as `first-last`; `LeaseLostError` if the lease is lost."""
        if not self._run("suspect", *_held(claim), lines):
            raise _lost(claim)

    def commit(self, claim: Claim, receipt: Receipt, finalize_seconds: float) -> bool:
        """Count a shard whose part is in the store; True if the caller must now finalize the job.

        `LeaseLostError` if the lease is lost: the shard is another's, who will find the part.
        """
        result = self._run(
            "commit",
            *_held(claim),
            receipt.succeeded,
            receipt.failed,
            receipt.prompt_tokens,
            receipt.completion_tokens,
            _ms(receipt.device_seconds),
            _ms(receipt.wasted_device_seconds),
            _ms(finalize_seconds),
        )
        if result == 0:
            raise _lost(claim)
        return bool(result == 2)

    def release(self, claim: Claim, *, counts: bool, unkept_seconds: float = 0.0) -> None:
        """Hand a shard back; `counts` says whether this was an attempt. With a lost lease nothing happens."""
        self._run("release", *_held(claim), int(counts), _ms(unkept_seconds))

    # Putting right what died

    def reconcile(
        self,
        patience_seconds: float,
        turn_seconds: float = 0.0,
        *,
        lease_seconds: float = 3600.0,
        finalize_seconds: float = 3600.0,
    ) -> list[tuple[str, ShardRef]]:
        """Expired leases become due, jobs past their deadline end; the hints to publish again, with models.

        In each turn of so many seconds one caller does it, and the others get nothing. Leases that end later
        than these from now were given before the server's clock was set back: they are cut.
        """
        times = (patience_seconds, turn_seconds, lease_seconds, finalize_seconds)
        arguments = tuple(_ms(each) for each in times)
        flat = self._run("reconcile", *arguments, keys=(self._prefix, self._queue_prefix))
        pairs = zip(flat[::2], flat[1::2], strict=True)
        return [(model.decode(), ShardRef.parse(ref.decode())) for model, ref in pairs]

    def take_finalizing(self, lease_seconds: float) -> list[str]:
        """Jobs whose last shard is done and that nobody is finalizing: the caller is, from now on."""
        return [job_id.decode() for job_id in self._run("take_finalizing", _ms(lease_seconds))]

    def keep_finalizing(self, job_id: str, lease_seconds: float) -> None:
        """Go on finalizing a job for so long."""
        self._run("keep_finalizing", checked_job_id(job_id), _ms(lease_seconds))

    def finish(self, job_id: str, state: JobState) -> bool:
        """Give a job its final state; False if another did."""
        return bool(self._run("finish", checked_job_id(job_id), state.value, self._remember))

    # Workers

    def announce(self, worker: WorkerInfo) -> None:
        """A worker's heartbeat."""
        with self._client.translated():
            self._redis.hset(f"{self._prefix}:workers", worker.name, msgspec.json.encode(worker))

    def withdraw(self, name: str) -> None:
        """A worker that ends says so."""
        with self._client.translated():
            self._redis.hdel(f"{self._prefix}:workers", name)

    def workers(self) -> list[WorkerInfo]:
        """The workers heard of in the last half minute."""
        with self._client.translated():
            described = self._redis.hvals(f"{self._prefix}:workers")
            seconds, _ = self._redis.time()
        infos = (msgspec.json.decode(each, type=WorkerInfo) for each in described)
        return sorted(
            (info for info in infos if info.seen_at > seconds - _WORKER_SILENCE_SECONDS),
            key=lambda info: info.name,
        )

    def now(self) -> float:
        """The server's clock, Unix seconds: what deadlines are measured by."""
        with self._client.translated():
            seconds, microseconds = self._redis.time()
        return float(seconds) + float(microseconds) / 1e6

    def _run(self, name: str, *arguments: bytes | str | int, keys: tuple[str, ...] = ()) -> Any:
        return self._client.run(name, keys or (self._prefix,), arguments)


def queue_key(settings: Settings, model: str) -> str:
    """The Redis list that holds a model's messages; the broker's queue of the same name lies there."""
    return f"{settings.redis_prefix}:queue:{model}"


def _about(spec: JobSpec) -> tuple[str | int | bytes, ...]:
    return (
        spec.id,
        spec.model,
        spec.priority.weight,
        spec.shards,
        spec.lines,
        msgspec.json.encode(spec),
        "" if spec.deadline is None else _ms(spec.deadline),
    )


def _ref(ref: ShardRef) -> tuple[str, int]:
    return checked_job_id(ref.job), ref.shard


def _held(claim: Claim) -> tuple[str, int, int, str]:
    return *_ref(claim.ref), claim.epoch, claim.owner


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _lost(claim: Claim) -> LeaseLostError:
    return LeaseLostError(f"shard {claim.ref} is no longer held under epoch {claim.epoch}")


def _status(answer: list[Any]) -> JobStatus:
    checkpointed, checkpointed_failed, prompt_tokens, completion_tokens, *flat = answer
    fields = {key.decode(): value for key, value in zip(flat[::2], flat[1::2], strict=True)}

    def when(name: str) -> float | None:
        return int(fields[name]) / 1000 if name in fields else None

    return JobStatus(
        spec=_spec.decode(fields["spec"]),
        state=JobState(fields["state"].decode()),
        succeeded=int(fields["succeeded"]),
        failed=int(fields["failed"]),
        checkpointed=int(checkpointed),
        checkpointed_failed=int(checkpointed_failed),
        committed_shards=int(fields["committed"]),
        prompt_tokens=int(fields["prompt_tokens"]) + int(prompt_tokens),
        completion_tokens=int(fields["completion_tokens"]) + int(completion_tokens),
        device_seconds=int(fields["device_ms"]) / 1000,
        wasted_device_seconds=int(fields["wasted_ms"]) / 1000,
        outcome=fields["outcome"].decode(),
        started_at=when("started_ms"),
        finished_at=when("finished_ms"),
        problem=fields.get("problem", b"").decode() or None,
    )
