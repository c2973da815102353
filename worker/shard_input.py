"""What a shard begins with: the job's spec, its lines, those refused at submission, those answered before.

Owns reading it from the store. Never writes, and never knows who holds the shard.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache

import msgspec
import structlog

from jobs import dialogue
from jobs.errors import LineError, MissingObjectError, StoreError
from jobs.records import JobKeys, JobSpec, Receipt, Reject, Shard, ShardRef
from jobs.renaming import renamed
from jobs.shard_index import read_rejects, read_shard
from jobs.storage import Store

log = structlog.get_logger(__name__)

#: Made here, before there are threads: msgspec's first decode of a type is not safe among several.
_receipt, _spec = msgspec.json.Decoder(Receipt), msgspec.json.Decoder(JobSpec)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardInput:
    """One shard of a job as it was submitted."""

    spec: JobSpec
    shard: Shard
    rejects: dict[int, Reject]

    @classmethod
    def read(cls, store: Store, ref: ShardRef) -> "ShardInput":
        """`MissingObjectError` if the job is not in the store."""
        keys = JobKeys(ref.job)
        spec = _job_spec(store, keys.spec)
        shard = read_shard(store, keys, ref.shard)
        return cls(spec=spec, shard=shard, rejects=read_rejects(store, keys, shard))

    @property
    def numbers(self) -> range:
        """Of its lines, in the job's input."""
        return range(self.shard.first_line, self.shard.first_line + self.shard.lines)

    def refused(self) -> dict[int, bytes]:
        """The output lines of those refused at submission."""
        return {
            number: dialogue.error_line(
                self.spec.id, reject.line, reject.custom_id, reject.code, reject.message
            )
            for number, reject in self.rejects.items()
        }

    def dialogues(
        self, store: Store, wanted: Collection[int], limit: int
    ) -> Iterator[dialogue.Dialogue | tuple[int, bytes]]:
        """The wanted lines as dialogues; one that can not be read as its number and output line."""
        if not wanted:
            return  # nothing to read, and a line that was refused for its length is not to be read
        data = store.get_range(JobKeys(self.spec.id).input, self.shard.offset, self.shard.length)
        for number, raw in zip(self.numbers, data.split(b"\n"), strict=False):
            if number not in wanted:
                continue
            try:
                yield dialogue.parse_line(raw, number, limit)
            except LineError as error:
                custom_id = dialogue.custom_id_of(raw)
                yield (
                    number,
                    dialogue.error_line(self.spec.id, number, custom_id, error.code, error.message),
                )


def answered_before(store: Store, given: ShardInput, number: int, model_hash: str) -> dict[int, bytes]:
    """Lines that the job named by `reuse_of` answered with the same weights, under this job's ids.

    None where that job has no such part, or another model made it: reuse is a favour, never a condition.
    """
    if given.spec.reuse_of is None:
        return {}
    keys = JobKeys(given.spec.reuse_of)
    try:
        receipt = _receipt.decode(store.get(keys.receipt(number)))
        if receipt.model_hash != model_hash or receipt.lines != given.shard.lines:
            return {}
        lines = store.get(keys.part(number)).splitlines()
        found = {
            line_number: renamed(line, given.spec.id, line_number)
            for line_number, line in zip(given.numbers, lines, strict=True)
            if dialogue.outcome(line).succeeded
        }
    except MissingObjectError:
        return {}
    except (msgspec.DecodeError, LineError, ValueError) as error:
        log.warning("part not reused: it is damaged", origin=given.spec.reuse_of, reason=str(error))
        return {}
    log.info("part reused", origin=given.spec.reuse_of, lines=len(found))
    return found


@lru_cache(maxsize=64)
def _job_spec(store: Store, key: str) -> JobSpec:
    data = store.get(key)
    try:
        return _spec.decode(data)
    except msgspec.DecodeError as error:
        raise StoreError(f"{store.url}: {key} is damaged: {error}") from error
