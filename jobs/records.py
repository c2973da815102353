"""Jobs and shards as immutable records, and where a job's objects lie in the store.

Owns the shapes that pass between producer, ledger, store and worker. Never talks to any of them.
"""

import re
import secrets
import time
from enum import StrEnum

import msgspec

from jobs.dialogue import Sampling
from jobs.errors import JobsError

_JOB_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class JobState(StrEnum):
    """A job's way: validating → queued → in_progress → finalizing → one of the four final states."""

    VALIDATING = "validating"
    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def final(self) -> bool:
        """Whether nothing about the job will change any more."""
        return self in _FINAL


_FINAL = frozenset({JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED})


class Priority(StrEnum):
    """How much of the fleet a job gets beside others; see `weight`."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"

    @property
    def weight(self) -> int:
        """Shards dispatched per turn, relative to the other active jobs."""
        return {Priority.LOW: 1, Priority.NORMAL: 4, Priority.HIGH: 16}[self]


class JobSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What the producer asked for: written once as `job.json`, never changed."""

    id: str
    #: Name of the model that must serve the job, not a path.
    model: str
    #: Unix time in seconds.
    created_at: float
    #: What the user named as the input, for people to read.
    source: str
    #: The job's own system message, for dialogues that have none.
    system: str | None = None
    #: Wraps the last user message; `{text}` stands for it.
    prompt_template: str | None = None
    #: The job's sampling; a line's own goes before it, the model's generation_config after it.
    sampling: Sampling = Sampling()
    priority: Priority = Priority.NORMAL
    #: Input lines, unusable ones included.
    lines: int
    #: Lines that were found unusable at submission.
    rejected: int
    shards: int
    input_bytes: int
    input_sha256: str
    #: Unix time by which the job must have ended; what is not done by then is `deadline_exceeded`.
    deadline: float | None = None
    #: The job whose failed lines these are: `origin.idx` says which.
    retry_of: str | None = None
    #: A job of the same content, model and parameters, whose finished lines may be taken over.
    reuse_of: str | None = None


class ShardRef(msgspec.Struct, frozen=True, order=True):
    """Names one shard of one job. The Celery message is this and nothing else."""

    job: str
    shard: int

    def __str__(self) -> str:
        return f"{self.job}/{self.shard}"

    @classmethod
    def parse(cls, text: str) -> "ShardRef":
        """Read what `str` wrote."""
        job, _, shard = text.rpartition("/")
        return cls(checked_job_id(job), int(shard))


class Shard(msgspec.Struct, frozen=True, kw_only=True):
    """A byte range of the job's input: its lines, and where its rejected ones are described."""

    offset: int
    length: int
    #: Number of its first line, counted from 1.
    first_line: int
    lines: int
    #: Range within `rejects.jsonl` of the shard's rejected lines.
    rejects_offset: int
    rejects_length: int


class Reject(msgspec.Struct, frozen=True, kw_only=True):
    """A line that was refused at submission, and why."""

    line: int
    custom_id: str | None
    code: str
    message: str


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """What one part holds and what it cost; written beside the part."""

    shard: int
    lines: int
    succeeded: int
    failed: int
    sha256: str
    bytes: int
    prompt_tokens: int
    completion_tokens: int
    #: Engine seconds that its lines took, times the devices of the group.
    device_seconds: float
    #: The same for work that died with an engine or a worker before its line was kept, as far as it is known.
    wasted_device_seconds: float = 0.0
    #: Who wrote it, on which devices, with which weights; None where it was restored from the part alone.
    worker: str | None
    group: str | None = None
    model_hash: str | None = None
    epoch: int


class JobStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A job as the ledger counts it now."""

    spec: JobSpec
    state: JobState
    #: Lines in committed parts.
    succeeded: int
    failed: int
    #: Lines checkpointed in shards that are not committed yet.
    checkpointed: int
    #: Of these, the ones that failed.
    checkpointed_failed: int
    committed_shards: int
    #: Of all lines that are done, checkpointed ones included.
    prompt_tokens: int
    completion_tokens: int
    #: Of committed shards.
    device_seconds: float
    wasted_device_seconds: float
    #: Empty while the job is wanted, else the state it is to end in.
    outcome: str
    started_at: float | None
    finished_at: float | None
    #: What holds the job up at present, in one line.
    problem: str | None

    @property
    def done_lines(self) -> int:
        """Lines with a final outcome, committed or checkpointed."""
        return self.succeeded + self.failed + self.checkpointed


def new_job_id() -> str:
    """An id that sorts by time of submission: `job-20260131-235959-1a2b3c`."""
    return f"job-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"


def checked_job_id(text: str) -> str:
    """The id itself; an id that could escape its prefix in the store or the ledger is refused."""
    if not _JOB_ID.fullmatch(text):
        raise JobsError(f"not a job id: {text[:80]!r} (lower-case letters, digits and '-', 63 at most)")
    return text


def checked_model_name(text: str) -> str:
    """The name itself; one that can not be part of a queue's name is refused."""
    if not _MODEL_NAME.fullmatch(text):
        raise JobsError(f"not a model name: {text[:80]!r} (letters, digits, '.', '_' and '-', 128 at most)")
    return text


class JobKeys:
    """The store's keys of one job. Every object of a job lies under `jobs/<id>/`."""

    def __init__(self, job_id: str) -> None:
        self.root = f"jobs/{checked_job_id(job_id)}"
        self.input = f"{self.root}/input.jsonl"
        self.spec = f"{self.root}/job.json"
        self.shards = f"{self.root}/shards.idx"
        self.rejects = f"{self.root}/rejects.jsonl"
        self.manifest = f"{self.root}/manifest.json"
        self.success = f"{self.root}/_SUCCESS"
        #: There once the job was called off, with the state that it is to end in: outlives the ledger.
        self.called_off = f"{self.root}/called_off"
        #: Of a retry: the line of its origin that each of its lines is, fixed width; see `jobs.origin`.
        self.origin = f"{self.root}/origin.idx"
        #: One empty object for each retry of this job, named by the retry's id.
        self.retries = f"{self.root}/retries"

    def part(self, shard: int) -> str:
        """The one place where the results of a shard can be."""
        return f"{self.root}/output/part-{shard:05d}.jsonl"

    def receipt(self, shard: int) -> str:
        """Beside the part: what it holds and what it cost."""
        return f"{self.root}/receipts/part-{shard:05d}.json"
