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
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeVar

import msgspec
import structlog

from jobs import dialogue
from jobs.errors import LeaseLostError, LedgerError, MissingObjectError
from jobs.ledger import Claim, Refusal, Tally
from jobs.records import JobKeys, JobState, Receipt, ShardRef
from worker import part
from worker.errors import HandedBackError
from worker.generation import Flight, ResultLine
from worker.leases import HeldLease
from worker.manifest import FINALIZE_SECONDS, finalize
from worker.metrics import SUCCEEDED, Ending
from worker.patience import patiently
from worker.shard_input import ShardInput, answered_before
from worker.station import Station
from worker.trials import halves

log = structlog.get_logger(__name__)
T = TypeVar("T")

#: Why a called-off job's missing lines have no answer, by the state that it ends in.
_CALLED_OFF: Mapping[str, tuple[str, str]] = {
    JobState.CANCELLED: (dialogue.CANCELLED, "the job was cancelled"),
    JobState.EXPIRED: (dialogue.DEADLINE_EXCEEDED, "the job's deadline has passed"),
    JobState.FAILED: (dialogue.ENGINE_ERROR, "the job failed"),
}


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
            _Shard(station, claim, lease).run()
        finally:
            station.leases.give_up(lease)
            station.metrics.leases_held(station.leases.held)


class _Shard:
    """One claimed shard."""

    def __init__(self, station: Station, claim: Claim, lease: HeldLease) -> None:
        self._station = station
        self._claim = claim
        self._lease = lease
        self._ref = claim.ref
        self._keys = JobKeys(claim.ref.job)
        self._devices = len(station.group.devices)
        self._device_seconds = claim.device_seconds
        self._wasted_seconds = claim.wasted_seconds
        #: Lines that this epoch got from the engine.
        self._generated = 0

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
                generated=self._generated,
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
        given = self._patiently(partial(ShardInput.read, store, self._ref))
        lines = self._patiently(partial(self._station.ledger.checkpoints, self._ref))
        lines.update(given.refused())
        found = len(lines)
        if not self._lease.called_off:
            reused = self._patiently(
                partial(answered_before, store, given, self._ref.shard, self._station.model.hash)
            )
            lines = reused | lines
        log.info(
            "shard begun",
            lines=given.shard.lines,
            found=found,
            reused=len(lines) - found,
            attempt=self._claim.attempt,
        )
        if not self._lease.called_off:
            self._generate_missing(given, lines)
        if outcome := self._lease.outcome:
            self._fail_missing(given, lines, *_CALLED_OFF[outcome])
        return self._commit_new(part.compose(given.shard, lines))

    def _dialogues(
        self, given: ShardInput, lines: dict[int, bytes], wanted: Collection[int]
    ) -> Iterator[dialogue.Dialogue]:
        """The wanted lines; what can not be read is put into `lines` as an error."""
        limit = self._station.settings.max_line_bytes
        read = partial(given.dialogues, self._station.store, wanted, limit)
        for each in self._patiently(lambda: list(read())):
            if isinstance(each, tuple):
                number, output = each
                lines[number] = output
            else:
                yield each

    # Generating

    def _generate_missing(self, given: ShardInput, lines: dict[int, bytes]) -> None:
        missing = [number for number in given.numbers if number not in lines]
        suspects = _span(self._claim.suspects)
        if not suspects and self._claim.attempt < self._station.settings.max_attempts:
            self._generate(given, lines, missing)
            return
        self._generate_apart(given, lines, [number for number in missing if number in suspects] or missing)
        self._generate(given, lines, [number for number in missing if number not in lines])

    def _generate_apart(self, given: ShardInput, lines: dict[int, bytes], suspects: Sequence[int]) -> None:
        """Attempts died without finishing a line: try some apart, and note which for whoever follows.

        Halves of halves lead to one line, which is given up where it dies alone a second time.
        """
        log.warning("lines tried apart", lines=len(suspects), attempt=self._claim.attempt)
        if len(suspects) == 1 and self._claim.suspects == _named(suspects) and self._claim.attempt > 1:
            reason = "workers died each time that they had this line, alone at last"
            self._fail_missing(given, lines, dialogue.ENGINE_ERROR, reason, only=suspects)
        else:
            for group in halves(suspects):
                self._suspect(_named(group))
                self._generate(given, lines, group)
        self._suspect("")

    def _suspect(self, lines: str) -> None:
        self._patiently(partial(self._station.ledger.suspect, self._claim, lines))

    def _generate(self, given: ShardInput, lines: dict[int, bytes], wanted: Sequence[int]) -> None:
        if not wanted:
            return
        station = self._station
        prefix = f"{self._ref}/{self._claim.epoch}/{secrets.token_hex(2)}"
        dialogues = self._dialogues(given, lines, frozenset(wanted))
        with Flight(station.model, station.settings, given.spec, prefix) as flight:
            for batch in flight.results(dialogues):
                if batch:
                    self._checkpoint(batch)
                    lines.update((result.number, result.output) for result in batch)
                self._lease.unkept_seconds = self._devices * flight.spent_seconds
                self._check()
                if self._lease.called_off:
                    return

    def _checkpoint(self, batch: Sequence[ResultLine]) -> None:
        outputs = {result.number: result.output for result in batch}
        tally = Tally(
            failed=sum(result.outcome != SUCCEEDED for result in batch),
            prompt_tokens=sum(result.prompt_tokens for result in batch),
            completion_tokens=sum(result.completion_tokens for result in batch),
            device_seconds=self._devices * sum(result.engine_seconds for result in batch),
            wasted_seconds=self._devices * sum(result.lost_seconds for result in batch),
        )
        self._patiently(partial(self._station.ledger.checkpoint, self._claim, outputs, tally))
        self._generated += len(batch)
        self._device_seconds += tally.device_seconds
        self._wasted_seconds += tally.wasted_seconds
        self._station.odometer.add(len(batch), tally.completion_tokens)
        metrics = self._station.metrics
        metrics.lines_done(
            Counter(result.outcome for result in batch),
            prompt_tokens=tally.prompt_tokens,
            cached_tokens=sum(result.cached_tokens for result in batch),
            completion_tokens=tally.completion_tokens,
        )
        metrics.device_seconds(tally.device_seconds)
        metrics.wasted(tally.wasted_seconds)

    def _fail_missing(
        self,
        given: ShardInput,
        lines: dict[int, bytes],
        code: str,
        reason: str,
        only: Sequence[int] | None = None,
    ) -> None:
        wanted = [number for number in only or given.numbers if number not in lines]
        failed = {
            line.line: dialogue.error_line(given.spec.id, line.line, line.custom_id, code, reason)
            for line in self._dialogues(given, lines, frozenset(wanted))
        }
        if failed:
            log.warning("lines given up", lines=len(failed), code=code, reason=reason)
            tally = Tally(failed=len(failed))
            self._patiently(partial(self._station.ledger.checkpoint, self._claim, failed, tally))
            self._station.metrics.lines_done({code: len(failed)})
            lines.update(failed)

    # Committing

    def _commit_new(self, data: bytes) -> Receipt:
        """Write the part, unless this epoch is old by now or another wrote it first."""
        self._check_lease()
        key = self._keys.part(self._ref.shard)
        if not self._patiently(partial(self._station.store.create, key, data)):
            return self._commit_existing(expected=data)
        return self._count(data, ours=True)

    def _commit_existing(self, expected: bytes | None = None) -> Receipt:
        """Count the part that is in the store; it is ours if its bytes are."""
        data = self._patiently(partial(self._station.store.get, self._keys.part(self._ref.shard)))
        return self._count(data, ours=data == expected)

    def _count(self, data: bytes, *, ours: bool) -> Receipt:
        station = self._station
        receipt = part.receipt(
            self._ref.shard,
            data,
            device_seconds=self._device_seconds,
            wasted_device_seconds=self._wasted_seconds,
            worker=station.worker if ours else None,
            group=str(station.group) if ours else None,
            model_hash=station.model.hash if ours else None,
            epoch=self._claim.epoch,
        )
        key = self._keys.receipt(self._ref.shard)
        self._patiently(partial(station.store.put, key, msgspec.json.encode(receipt)))
        self._commit(receipt)
        return receipt

    def _commit(self, receipt: Receipt) -> None:
        station = self._station
        last = self._patiently(partial(station.ledger.commit, self._claim, receipt, FINALIZE_SECONDS))
        station.leases.give_up(self._lease)
        if last:
            self._finalize()
        station.dispatch()

    def _finalize(self) -> None:
        """Write the manifest; where services fail for longer than we live, another worker does."""
        station = self._station
        try:
            self._patiently(
                partial(finalize, station.store, station.ledger, self._ref.job, station.model.versions)
            )
        except HandedBackError:
            log.info("job left for another to finalize")

    # Giving up

    def _give_up(self, reason: str) -> None:
        """The job's objects are not there: try again later, and in the end let the job fail."""
        log.error("shard can not be done", reason=reason, attempt=self._claim.attempt)
        self._note(reason)
        if self._claim.attempt < self._station.settings.max_attempts:
            self._release(counts=True)
            return
        nothing = part.receipt(self._ref.shard, b"", epoch=self._claim.epoch)
        self._patiently(partial(self._station.ledger.call_off, self._ref.job, JobState.FAILED))
        self._commit(nothing)
        self._note(reason)

    def _release(self, *, counts: bool) -> None:
        unkept = self._lease.unkept_seconds
        self._station.metrics.wasted(unkept)
        try:
            self._station.ledger.release(self._claim, counts=counts, unkept_seconds=unkept)
        except LedgerError as error:
            log.warning("shard not handed back: its lease will run out", reason=str(error))
        else:
            log.info("shard handed back", counts=counts)

    # Watching

    def _check_lease(self) -> None:
        if self._lease.lost.is_set():
            raise LeaseLostError(f"shard {self._ref} was taken over")

    def _check(self) -> None:
        self._check_lease()
        self._station.check()

    def _note(self, reason: str) -> None:
        with contextlib.suppress(LedgerError):  # a note is for people; what matters waits for Redis elsewhere
            self._station.ledger.note(self._ref.job, reason)

    def _patiently(self, action: Callable[[], T]) -> T:
        return patiently(
            action,
            check=self._check,
            report=self._note,
            sleep=self._station.wait,
            metrics=self._station.metrics,
        )


def _named(lines: Sequence[int]) -> str:
    return f"{lines[0]}-{lines[-1]}"


def _span(text: str) -> range:
    """What `_named` wrote; empty for an empty text."""
    first, _, last = text.partition("-")
    return range(int(first), int(last) + 1) if text else range(0)
