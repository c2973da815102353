"""The output lines of a claimed shard: found, generated or given up, and checkpointed as they come.

Owns which of its lines are generated, and how few at a time where they kill. Never writes to the store.
"""

import secrets
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial

import structlog

from jobs import dialogue
from jobs.ledger import Tally
from jobs.records import JobState, Shard
from worker.generation import Flight, ResultLine
from worker.hold import Hold
from worker.metrics import SUCCEEDED
from worker.shard_input import ShardInput, answered_before
from worker.trials import halves

log = structlog.get_logger(__name__)

#: Why a called-off job's missing lines have no answer, by the state that it ends in.
_CALLED_OFF: Mapping[str, tuple[str, str]] = {
    JobState.CANCELLED: (dialogue.CANCELLED, "the job was cancelled"),
    JobState.EXPIRED: (dialogue.DEADLINE_EXCEEDED, "the job's deadline has passed"),
    JobState.FAILED: (dialogue.ENGINE_ERROR, "the job failed"),
}


class Answers:
    """The lines of one shard under one claim."""

    def __init__(self, hold: Hold) -> None:
        self._hold = hold
        self._station, self._claim, self._lease = hold.station, hold.claim, hold.lease
        self._ref = hold.claim.ref
        self._devices = len(hold.station.group.devices)
        self.device_seconds = hold.claim.device_seconds
        self.wasted_seconds = hold.claim.wasted_seconds
        #: Lines that this epoch got from the engine.
        self.generated = 0

    def complete(self) -> tuple[Shard, dict[int, bytes]]:
        """The shard and an output line for each of its lines, by number."""
        store = self._station.store
        given = self._hold.patiently(partial(ShardInput.read, store, self._ref))
        lines = self._hold.patiently(partial(self._station.ledger.checkpoints, self._ref))
        self._hold.confirm()
        lines.update(given.refused())
        found = len(lines)
        if not self._lease.called_off:
            before = partial(answered_before, store, given, self._ref.shard, self._station.model.hash)
            lines = self._hold.patiently(before) | lines
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
        return given.shard, lines

    def _dialogues(
        self, given: ShardInput, lines: dict[int, bytes], wanted: Collection[int]
    ) -> Iterator[dialogue.Dialogue]:
        """The wanted lines; what can not be read is put into `lines` as an error."""
        limit = self._station.settings.max_line_bytes
        read = partial(given.dialogues, self._station.store, wanted, limit)
        for each in self._hold.patiently(lambda: list(read())):
            if isinstance(each, tuple):
                number, output = each
                lines[number] = output
            else:
                yield each

    def _generate_missing(self, given: ShardInput, lines: dict[int, bytes]) -> None:
        missing = [number for number in given.numbers if number not in lines]
        if not missing:
            return
        suspects = _span(self._claim.suspects)
        floor = self._station.floor
        if not suspects and self._claim.attempt < self._station.settings.max_attempts:
            with floor.shared(self._hold.check):
                self._generate(given, lines, missing)
            return
        with floor.alone(self._hold.check):
            self._generate_apart(
                given, lines, [number for number in missing if number in suspects] or missing
            )
        with floor.shared(self._hold.check):
            self._generate(given, lines, [number for number in missing if number not in lines])

    def _generate_apart(self, given: ShardInput, lines: dict[int, bytes], suspects: Sequence[int]) -> None:
        """Attempts died without finishing a line: try some apart, and note which for whoever follows.

        Halves of halves lead to one line, which is given up where it dies alone a second time.
        """
        log.warning("lines tried apart", lines=len(suspects), attempt=self._claim.attempt)
        tried = self._claim.trials if self._claim.suspects == _named(suspects) else 0
        if len(suspects) == 1 and tried > 1:
            reason = "workers died each time that they had this line, alone at last"
            self._fail_missing(given, lines, dialogue.ENGINE_ERROR, reason, only=suspects)
        else:
            for group in halves(suspects):
                self._suspect(_named(group))
                self._generate(given, lines, group)
        self._suspect("")

    def _suspect(self, lines: str) -> None:
        self._hold.patiently(partial(self._station.ledger.suspect, self._claim, lines))

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
                self._hold.check()
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
        self._hold.patiently(partial(self._station.ledger.checkpoint, self._claim, outputs, tally))
        self.generated += len(batch)
        self.device_seconds += tally.device_seconds
        self.wasted_seconds += tally.wasted_seconds
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
            self._hold.patiently(partial(self._station.ledger.checkpoint, self._claim, failed, tally))
            self._station.metrics.lines_done({code: len(failed)})
            lines.update(failed)


def _named(lines: Sequence[int]) -> str:
    return f"{lines[0]}-{lines[-1]}"


def _span(text: str) -> range:
    """What `_named` wrote; empty for an empty text."""
    first, _, last = text.partition("-")
    return range(int(first), int(last) + 1) if text else range(0)
