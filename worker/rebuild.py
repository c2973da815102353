"""The ledger, made anew from the store: for a Redis that lost what it knew.

The store has it all: `job.json` says what was asked for, a part is there whole or not at all, its receipt
says what it holds. What is lost is the checkpoints of shards without a part: their lines are generated again.
Owns reading a job out of the store. Never touches a job that the ledger still knows.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from jobs.errors import MissingObjectError
from jobs.ledger import Ledger, Restored
from jobs.records import JobKeys, JobSpec, JobState, Receipt
from jobs.storage import Store
from worker.manifest import read_ending, stored_receipt

_PREFIX = "jobs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """What became of one job."""

    job: str
    #: Its state now; None where it was left alone because the ledger knows it.
    state: JobState | None
    parts: int
    shards: int


def stored_jobs(store: Store) -> Iterator[str]:
    """The ids of all jobs in the store that were submitted whole."""
    for job in sorted(store.folders(_PREFIX)):
        if store.size(JobKeys(job).spec) is not None:
            yield job


def rebuild(store: Store, ledger: Ledger, job_id: str) -> Rebuilt:
    """Make one job known to the ledger again. `MissingObjectError` if the store has no such job."""
    keys = JobKeys(job_id)
    spec = msgspec.json.decode(store.get(keys.spec), type=JobSpec)
    sums = _sums(store, keys, spec)
    outcome, state, finished_at = _standing(store, keys, sums, spec)
    known = not ledger.restore(
        Restored(
            spec=spec,
            state=state,
            outcome=outcome,
            committed=sums.parts,
            succeeded=sums.succeeded,
            failed=sums.failed,
            prompt_tokens=sums.prompt_tokens,
            completion_tokens=sums.completion_tokens,
            device_seconds=sums.device_seconds,
            wasted_seconds=sums.wasted_seconds,
            next=sums.next,
            missing=sums.missing,
            finished_at=finished_at,
        )
    )
    return Rebuilt(job=job_id, state=None if known else state, parts=sums.parts, shards=spec.shards)


def show(rebuilt: Rebuilt, *, as_json: bool) -> None:
    """One job in a line of standard output."""
    if as_json:
        sys.stdout.write(msgspec.json.encode(rebuilt).decode() + "\n")
        return
    what = f"is {rebuilt.state.value} again" if rebuilt.state else "is known already: left alone"
    sys.stdout.write(f"{rebuilt.job} {what}, {rebuilt.parts} of {rebuilt.shards} parts\n")


@dataclass(slots=True)
class _Sums:
    """The parts of a job added up."""

    parts: int = 0
    succeeded: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    device_seconds: float = 0.0
    wasted_seconds: float = 0.0
    #: All shards from here on have no part; those before it that have none.
    next: int = 0
    missing: tuple[int, ...] = ()

    def add(self, receipt: Receipt) -> None:
        self.parts += 1
        self.succeeded += receipt.succeeded
        self.failed += receipt.failed
        self.prompt_tokens += receipt.prompt_tokens
        self.completion_tokens += receipt.completion_tokens
        self.device_seconds += receipt.device_seconds
        self.wasted_seconds += receipt.wasted_device_seconds


def _sums(store: Store, keys: JobKeys, spec: JobSpec) -> _Sums:
    """One listing says which parts there are."""
    sums = _Sums()
    present = set(store.list(f"{keys.root}/output"))
    there = [number for number in range(spec.shards) if keys.part(number) in present]
    for number in there:
        sums.add(stored_receipt(store, keys, number))
    sums.next = there[-1] + 1 if there else 0
    held = set(there)
    sums.missing = tuple(number for number in range(sums.next) if number not in held)
    return sums


def _standing(store: Store, keys: JobKeys, sums: _Sums, spec: JobSpec) -> tuple[str, JobState, float | None]:
    """What it was called off for, its state, and when it ended."""
    if ending := read_ending(store, keys):
        state, finished_at = ending
        return ("" if state in (JobState.COMPLETED, JobState.FAILED) else state.value), state, finished_at
    try:
        outcome = JobState(store.get(keys.called_off).decode().strip())
    except MissingObjectError:
        whole = sums.parts == spec.shards
        return "", JobState.FINALIZING if whole else JobState.IN_PROGRESS, None
    return outcome.value, JobState.FINALIZING, None
