"""The way of one shard: claim → generate → post-process → commit.

Owns the order of the steps, which is what makes a line appear exactly once:
  1. a claim in the ledger gives an epoch; only its holder may checkpoint and commit;
  2. each finished line is checkpointed under the epoch, so whoever comes after a crash generates the rest;
  3. the part is created whole under a fixed key, once: a second writer finds it and counts what it finds;
  4. the ledger counts the shard; the last to be counted has the manifest written.
Never publishes to the broker itself, and never looks inside an engine.
"""

import contextlib
import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TypeVar

import msgspec
import structlog

from jobs import dialogue
from jobs.errors import LeaseLostError, LedgerError, LineError, MissingObjectError
from jobs.ledger import Claim, Ledger, Refusal
from jobs.records import JobKeys, JobSpec, JobState, Receipt, Reject, Shard, ShardRef
from jobs.settings import Settings
from jobs.shard_index import read_rejects, read_shard
from jobs.storage import Store
from worker import part
from worker.errors import HandedBackError
from worker.generation import Model, ResultLine, generate
from worker.groups import DeviceGroup
from worker.leases import HeldLease, LeaseKeeper
from worker.manifest import FINALIZE_SECONDS, finalize
from worker.patience import patiently

log = structlog.get_logger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Station:
    """What all shards of a worker work with."""

    worker: str
    group: DeviceGroup
    settings: Settings
    store: Store
    ledger: Ledger
    leases: LeaseKeeper
    model: Model
    #: Opens and publishes the next shards of the model's queue.
    dispatch: Callable[[], None]
    #: Set when shards are to be handed back instead of finished.
    hand_back: threading.Event


def work(station: Station, ref: ShardRef) -> None:
    """Do one shard, if it is there to be done."""
    owner = f"{station.worker}/{secrets.token_hex(4)}"
    lease_seconds = station.settings.lease_seconds
    try:
        claim = patiently(
            partial(station.ledger.claim, ref, owner, lease_seconds), check=partial(_check_draining, station)
        )
    except HandedBackError:
        return  # Redis is away and so are we, soon: the reconciler publishes the shard again
    if isinstance(claim, Refusal):
        log.debug("shard not claimed", job=ref.job, shard=ref.shard, reason=claim.reason)
        return
    with structlog.contextvars.bound_contextvars(job=ref.job, shard=ref.shard, epoch=claim.epoch):
        lease = station.leases.hold(claim)
        try:
            station.dispatch()
            _Shard(station, claim, lease).run()
        finally:
            station.leases.give_up(lease)


class _Shard:
    """One claimed shard."""

    def __init__(self, station: Station, claim: Claim, lease: HeldLease) -> None:
        self._station = station
        self._claim = claim
        self._lease = lease
        self._ref = claim.ref
        self._keys = JobKeys(claim.ref.job)
        self._device_seconds = 0.0
        #: Lines that this epoch got from the engine.
        self._generated = 0

    def run(self) -> None:
        """Finish the shard, or leave it so that another can."""
        try:
            committed = self._adopted() or self._created()
            log.info(
                "shard committed",
                lines=committed.lines,
                failed=committed.failed,
                tokens=committed.completion_tokens,
                generated=self._generated,
            )
        except LeaseLostError as error:
            log.warning("shard left to its new owner", reason=str(error))
        except HandedBackError:
            self._release(counts=False)
        except MissingObjectError as error:
            self._give_up(str(error))
        except BaseException:
            self._release(counts=True)
            raise

    # Reading

    def _adopted(self) -> Receipt | None:
        """Count the part that an earlier epoch wrote without living to have it counted."""
        if self._claim.epoch == 1:
            return None
        if self._patiently(partial(self._station.store.size, self._keys.part(self._ref.shard))) is None:
            return None
        log.info("part found: written under an earlier epoch")
        return self._commit_existing()

    def _created(self) -> Receipt:
        """Generate what is missing and write the part."""
        store = self._station.store
        spec = self._patiently(partial(_job_spec, store, self._keys.spec))
        shard = self._patiently(partial(read_shard, store, self._keys, self._ref.shard))
        rejects = self._patiently(partial(read_rejects, store, self._keys, shard))
        lines = self._patiently(partial(self._station.ledger.checkpoints, self._ref))
        lines.update((number, _rejected(spec.id, reject)) for number, reject in rejects.items())
        log.info("shard begun", lines=shard.lines, found=len(lines), attempt=self._claim.attempt)
        if self._claim.attempt > self._station.settings.max_attempts:
            reason = f"given up after {self._claim.attempt - 1} attempts on its shard"
            self._fail_missing(spec, shard, lines, dialogue.ENGINE_ERROR, reason)
        elif not self._called_off:
            self._generate(spec, shard, lines)
        if self._called_off:
            self._fail_missing(spec, shard, lines, dialogue.CANCELLED, "the job was cancelled")
        return self._commit_new(part.compose(shard, lines))

    def _missing(self, shard: Shard, lines: dict[int, bytes]) -> Iterator[dialogue.Dialogue]:
        """The dialogues of the shard that `lines` lacks; what can not be read is put there as an error."""
        store, limit = self._station.store, self._station.settings.max_line_bytes
        if len(lines) >= shard.lines:
            return  # nothing to read, and a line that was refused for its length is not to be read
        data = self._patiently(partial(store.get_range, self._keys.input, shard.offset, shard.length))
        for number, raw in enumerate(data.split(b"\n")[: shard.lines], start=shard.first_line):
            if number in lines:
                continue
            try:
                yield dialogue.parse_line(raw, number, limit)
            except LineError as error:
                custom_id = dialogue.custom_id_of(raw)
                lines[number] = dialogue.error_line(
                    self._ref.job, number, custom_id, error.code, error.message
                )

    # Generating

    def _generate(self, spec: JobSpec, shard: Shard, lines: dict[int, bytes]) -> None:
        prefix = f"{self._ref}/{self._claim.epoch}"
        missing = self._missing(shard, lines)
        results = generate(self._station.model, self._station.settings, spec, missing, prefix)
        with contextlib.closing(results):
            for batch in results:
                if batch:
                    self._checkpoint(batch)
                    lines.update((result.number, result.output) for result in batch)
                self._check()
                if self._called_off:
                    return

    def _checkpoint(self, batch: list[ResultLine]) -> None:
        outputs = {result.number: result.output for result in batch}
        self._patiently(partial(self._station.ledger.checkpoint, self._claim, outputs))
        self._generated += len(batch)
        devices = len(self._station.group.devices)
        self._device_seconds += devices * sum(result.engine_seconds for result in batch)

    def _fail_missing(
        self, spec: JobSpec, shard: Shard, lines: dict[int, bytes], code: str, reason: str
    ) -> None:
        for line in self._missing(shard, lines):
            lines[line.line] = dialogue.error_line(spec.id, line.line, line.custom_id, code, reason)

    # Committing

    def _commit_new(self, data: bytes) -> Receipt:
        """Write the part, unless this epoch is old by now or another wrote it first."""
        self._check_lease()
        key = self._keys.part(self._ref.shard)
        if not self._patiently(partial(self._station.store.create, key, data)):
            return self._commit_existing(expected=data)
        return self._count(data, self._station.worker)

    def _commit_existing(self, expected: bytes | None = None) -> Receipt:
        """Count the part that is in the store; it is ours if its bytes are."""
        data = self._patiently(partial(self._station.store.get, self._keys.part(self._ref.shard)))
        return self._count(data, self._station.worker if data == expected else None)

    def _count(self, data: bytes, worker: str | None) -> Receipt:
        receipt = part.receipt(
            self._ref.shard,
            data,
            device_seconds=self._device_seconds,
            worker=worker,
            epoch=self._claim.epoch,
        )
        key = self._keys.receipt(self._ref.shard)
        self._patiently(partial(self._station.store.put, key, msgspec.json.encode(receipt)))
        self._commit(receipt)
        return receipt

    def _commit(self, receipt: Receipt) -> None:
        station = self._station
        last = self._patiently(partial(station.ledger.commit, self._claim, receipt, FINALIZE_SECONDS))
        station.leases.give_up(self._lease)
        if last:
            self._patiently(
                partial(finalize, station.store, station.ledger, self._ref.job, station.model.versions)
            )
        station.dispatch()

    # Giving up

    def _give_up(self, reason: str) -> None:
        """The job's objects are not there: try again later, and in the end let the job fail."""
        log.error("shard can not be done", reason=reason, attempt=self._claim.attempt)
        self._note(reason)
        if self._claim.attempt < self._station.settings.max_attempts:
            self._release(counts=True)
            return
        nothing = part.receipt(self._ref.shard, b"", device_seconds=0, worker=None, epoch=self._claim.epoch)
        self._patiently(partial(self._station.ledger.call_off, self._ref.job, JobState.FAILED))
        self._commit(nothing)
        self._note(reason)

    def _release(self, *, counts: bool) -> None:
        try:
            self._station.ledger.release(self._claim, counts=counts)
        except LedgerError as error:
            log.warning("shard not handed back: its lease will run out", reason=str(error))
        else:
            log.info("shard handed back", counts=counts)

    # Watching

    @property
    def _called_off(self) -> bool:
        return self._lease.called_off.is_set()

    def _check_lease(self) -> None:
        if self._lease.lost.is_set():
            raise LeaseLostError(f"shard {self._ref} was taken over")

    def _check(self) -> None:
        self._check_lease()
        _check_draining(self._station)

    def _note(self, reason: str) -> None:
        with contextlib.suppress(LedgerError):  # a note is for people; what matters waits for Redis elsewhere
            self._station.ledger.note(self._ref.job, reason)

    def _wait(self, seconds: float) -> None:
        self._station.hand_back.wait(seconds)

    def _patiently(self, action: Callable[[], T]) -> T:
        return patiently(action, check=self._check, report=self._note, sleep=self._wait)


def _check_draining(station: Station) -> None:
    if station.hand_back.is_set():
        raise HandedBackError("the worker is draining")


@lru_cache(maxsize=64)
def _job_spec(store: Store, key: str) -> JobSpec:
    return msgspec.json.decode(store.get(key), type=JobSpec)


def _rejected(job_id: str, reject: Reject) -> bytes:
    return dialogue.error_line(job_id, reject.line, reject.custom_id, reject.code, reject.message)
