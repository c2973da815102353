"""A worker without an engine, for tests of the producer: real ledger, store and parts, made-up answers.

Works off what is dispatched, in the calling thread, with the last user message as the answer. A line can be
made to fail by its text, or by an answer of one's own; what it took a test may ask by its sampling.
"""

from collections.abc import Callable
from dataclasses import dataclass

from jobs import dialogue
from jobs.dialogue import Dialogue, error_line, parse_line, success_line
from jobs.ledger import Claim, Ledger
from jobs.records import JobKeys, JobSpec, Shard, ShardRef
from jobs.settings import Settings
from jobs.shard_index import read_rejects, read_shard
from jobs.storage import Store
from worker import part
from worker.manifest import finalize

Answer = Callable[[Dialogue], str | None]


def echo(line: Dialogue) -> str | None:
    """The last message; None, which fails the line, where it asks for that."""
    text = line.messages[-1].content
    return None if text == "fail" else text


@dataclass(frozen=True, kw_only=True)
class FleetOfOne:
    """Does one job's shards by their numbers, or all of them."""

    settings: Settings
    answer: Answer = echo

    @property
    def store(self) -> Store:
        return Store.open(self.settings)

    @property
    def ledger(self) -> Ledger:
        return Ledger.open(self.settings)

    def work(self, spec: JobSpec, shards: range | None = None) -> None:
        """Open, claim, write and commit shards; finalize the job after the last."""
        ledger = self.ledger
        try:
            ledger.dispatch(spec.model, spec.shards)
            for number in range(spec.shards) if shards is None else shards:
                claim = ledger.claim(ShardRef(spec.id, number), f"one/{spec.id}/{number}", 60)
                assert isinstance(claim, Claim), claim
                assert claim.ref.job == spec.id, "another job of the model is under way"
                if self._commit(ledger, claim, spec):
                    finalize(self.store, ledger, spec.id, {})
        finally:
            ledger.close()

    def end(self) -> None:
        """Finalize jobs that were called off or have passed their deadline."""
        ledger = self.ledger
        try:
            ledger.reconcile(60)
            for job_id in ledger.take_finalizing(60):
                finalize(self.store, ledger, job_id, {})
        finally:
            ledger.close()

    def _commit(self, ledger: Ledger, claim: Claim, spec: JobSpec) -> bool:
        keys = JobKeys(spec.id)
        shard = read_shard(self.store, keys, claim.ref.shard)
        data = part.compose(shard, self._lines(keys, spec, shard))
        assert self.store.create(keys.part(claim.ref.shard), data)
        receipt = part.receipt(claim.ref.shard, data, device_seconds=0.0, worker="one", epoch=claim.epoch)
        return ledger.commit(claim, receipt, 60)

    def _lines(self, keys: JobKeys, spec: JobSpec, shard: Shard) -> dict[int, bytes]:
        rejects = read_rejects(self.store, keys, shard)
        data = self.store.get_range(keys.input, shard.offset, shard.length)
        lines: dict[int, bytes] = {}
        for number, raw in enumerate(data.split(b"\n")[: shard.lines], start=shard.first_line):
            if number in rejects:
                reject = rejects[number]
                lines[number] = error_line(spec.id, number, reject.custom_id, reject.code, reject.message)
                continue
            line = parse_line(raw, number, self.settings.max_line_bytes)
            sampling = line.sampling.over(spec.sampling)
            asked = Dialogue(number, line.custom_id, line.messages, sampling)
            text = self.answer(asked.prepared(spec.system, spec.prompt_template))
            lines[number] = (
                error_line(spec.id, number, line.custom_id, dialogue.ENGINE_ERROR, "made to fail")
                if text is None
                else success_line(
                    spec.id,
                    line,
                    model=spec.model,
                    text=text,
                    finish_reason="stop",
                    prompt_tokens=len(line.messages),
                    completion_tokens=1,
                    created=0,
                )
            )
        return lines
