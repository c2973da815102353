"""The way of one shard: claim → generate → post-process → commit.

Owns the order of the steps, which is what makes a line appear exactly once:
  1. a claim in the ledger gives an epoch; only its holder may checkpoint and commit;
  2. each finished line is checkpointed under the epoch, so whoever comes after a crash generates the rest;
  3. the part is created whole under a fixed key, once: a second writer finds it and counts what it finds;
  4. the ledger counts the shard; the last to be counted has the manifest written.
Never publishes to the broker itself, and never looks inside an engine.
"""

import secrets
import time
from functools import partial
from typing import TypeVar

import msgspec
import structlog

from jobs.errors import LeaseLostError, LedgerError, MissingObjectError
from jobs.ledger import Refusal
from jobs.records import JobKeys, JobState, Receipt, ShardRef
from worker import part
from worker.answers import Answers
from worker.errors import HandedBackError
from worker.hold import Hold
from worker.manifest import FINALIZE_SECONDS, finalize, known_receipt
from worker.metrics import Ending
from worker.patience import patiently
from worker.station import Station

log = structlog.get_logger(__name__)
T = TypeVar("T")


def work(station: Station, hint: ShardRef) -> None:
    """Do one shard, if there is one to be done: the hint's, or one whose turn it is before."""
    owner = f"{station.worker}/{secrets.token_hex(4)}"
    lease_seconds = station.settings.lease_seconds
    try:
        claim = patiently(
            partial(station.ledger.claim, hint, owner, lease_seconds),
            check=station.check,
            sleep=station.wait,
            metrics=station.metrics,
        )
    except HandedBackError:
        return  # Redis is away and so are we, soon: the reconciler publishes the shard again
    if isinstance(claim, Refusal):
        log.debug("no shard claimed", job=hint.job, shard=hint.shard, reason=claim.reason)
        return
    station.metrics.shard_claimed(claim.waited_seconds, claim.attempt)
    with structlog.contextvars.bound_contextvars(job=claim.ref.job, shard=claim.ref.shard, epoch=claim.epoch):
        lease = station.leases.hold(claim)
        station.metrics.leases_held(station.leases.held)
        try:
            station.dispatch()
            _Shard(Hold(station, claim, lease)).run()
        finally:
            station.leases.give_up(lease)
            station.metrics.leases_held(station.leases.held)


class _Shard:
    """One claimed shard."""

    def __init__(self, hold: Hold) -> None:
        self._hold = hold
        self._station, self._claim, self._lease = hold.station, hold.claim, hold.lease
        self._ref = hold.claim.ref
        self._keys = JobKeys(hold.claim.ref.job)
        self._answers = Answers(hold)

    def run(self) -> None:
        """Finish the shard, or leave it so that another can."""
        begun = time.monotonic()
        ending: Ending = "failed"
        try:
            committed = self._adopted() or self._created()
            ending = "committed"
            log.info(
                "shard committed",
                lines=committed.lines,
                failed=committed.failed,
                tokens=committed.completion_tokens,
                generated=self._answers.generated,
            )
        except LeaseLostError as error:
            ending = "lost"
            log.warning("shard left to its new owner", reason=str(error))
        except HandedBackError:
            ending = "handed_back"
            self._release(counts=False)
        except MissingObjectError as error:
            self._give_up(str(error))
        except BaseException:
            self._release(counts=True)
            raise
        finally:
            self._station.metrics.shard_ended(ending, time.monotonic() - begun)

    def _adopted(self) -> Receipt | None:
        """Count the part that an earlier epoch wrote without living to have it counted."""
        if self._claim.epoch == 1:
            return None
        if self._hold.patiently(partial(self._station.store.size, self._keys.part(self._ref.shard))) is None:
            return None
        log.info("part found: written under an earlier epoch")
        return self._commit_existing()

    def _created(self) -> Receipt:
        """Complete the lines and write the part."""
        shard, lines = self._answers.complete()
        return self._commit_new(part.compose(shard, lines))

    # Committing

    def _commit_new(self, data: bytes) -> Receipt:
        """Write the part, unless this epoch is old by now or another wrote it first."""
        self._hold.check_lease()
        key = self._keys.part(self._ref.shard)
        if not self._hold.patiently(partial(self._station.store.create, key, data)):
            return self._commit_existing(expected=data)
        return self._count(data, ours=True)

    def _commit_existing(self, expected: bytes | None = None) -> Receipt:
        """Count the part that is in the store; it is ours if its bytes are, else whose its receipt says."""
        data = self._hold.patiently(partial(self._station.store.get, self._keys.part(self._ref.shard)))
        if data == expected:
            return self._count(data, ours=True)
        written = partial(known_receipt, self._station.store, self._keys, self._ref.shard)
        known = self._hold.patiently(written)
        if known is None or known.sha256 != part.sha256(data):
            return self._count(data, ours=False)
        self._commit(known)
        return known

    def _count(self, data: bytes, *, ours: bool) -> Receipt:
        station = self._station
        receipt = part.receipt(
            self._ref.shard,
            data,
            device_seconds=self._answers.device_seconds,
            wasted_device_seconds=self._answers.wasted_seconds,
            worker=station.worker if ours else None,
            group=str(station.group) if ours else None,
            model_hash=station.model.hash if ours else None,
            epoch=self._claim.epoch,
        )
        key = self._keys.receipt(self._ref.shard)
        self._hold.patiently(partial(station.store.put, key, msgspec.json.encode(receipt)))
        self._commit(receipt)
        return receipt

    def _commit(self, receipt: Receipt) -> None:
        station = self._station
        last = self._hold.patiently(partial(station.ledger.commit, self._claim, receipt, FINALIZE_SECONDS))
        station.leases.give_up(self._lease)
        if last:
            self._finalize()
        station.dispatch()

    def _finalize(self) -> None:
        """Write the manifest; where services fail for longer than we live, another worker does."""
        station = self._station
        try:
            self._hold.patiently(
                partial(finalize, station.store, station.ledger, self._ref.job, station.model.versions)
            )
        except HandedBackError:
            log.info("job left for another to finalize")

    # Giving up

    def _give_up(self, reason: str) -> None:
        """The job's objects are not there: try again later, and in the end let the job fail."""
        log.error("shard can not be done", reason=reason, attempt=self._claim.attempt)
        self._hold.note(reason)
        if self._claim.attempt < self._station.settings.max_attempts:
            self._release(counts=True)
            return
        nothing = part.receipt(self._ref.shard, b"", epoch=self._claim.epoch)
        self._hold.patiently(partial(self._station.ledger.call_off, self._ref.job, JobState.FAILED))
        self._commit(nothing)
        self._hold.note(reason)

    def _release(self, *, counts: bool) -> None:
        unkept = self._lease.unkept_seconds
        self._station.metrics.wasted(unkept)
        try:
            self._station.ledger.release(self._claim, counts=counts, unkept_seconds=unkept)
        except LedgerError as error:
            log.warning("shard not handed back: its lease will run out", reason=str(error))
        else:
            log.info("shard handed back", counts=counts)
