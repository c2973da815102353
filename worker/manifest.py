"""The end of a job: its manifest, which is its receipt, and its final state.

Owns what the manifest says. It is written from what is in the store, as often as need be with the same
outcome; the ledger learns the final state last.
"""

import time
from collections.abc import Iterator
from importlib.metadata import version

import msgspec
import structlog

from jobs.errors import MissingObjectError
from jobs.ledger import Ledger
from jobs.records import JobKeys, JobSpec, JobState, JobStatus, Receipt
from jobs.storage import Sink, Store
from worker import part

log = structlog.get_logger(__name__)

#: How long a worker that writes a manifest may be silent before another tries.
FINALIZE_SECONDS = 30.0


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """A job added up."""

    lines: int
    succeeded: int
    failed: int
    #: Lines of shards that were never begun because the job was called off.
    not_run: int
    prompt_tokens: int
    completion_tokens: int
    #: Engine time that the lines took, times the devices of the groups.
    device_seconds: float
    device_seconds_per_1000_lines: float
    #: The same for work that was lost with engines and workers that died, as far as it is known.
    wasted_device_seconds: float


def finalize(store: Store, ledger: Ledger, job_id: str, versions: dict[str, str]) -> JobState:
    """Write the manifest of a job whose shards are all done, and give it its final state."""
    status = ledger.status(job_id)
    if status.state is not JobState.FINALIZING:
        return status.state
    keys = JobKeys(job_id)
    with store.writer(keys.manifest) as sink:
        receipts = _kept_alive(ledger, job_id, _receipts(store, keys, status.spec))
        totals, hashes = _write_parts(sink, status.spec, receipts)
        state = _final_state(status, totals)
        _write_rest(sink, status, state, totals, {"hashes": sorted(hashes)}, versions)
    if state is JobState.COMPLETED:
        store.put(keys.success, b"")
    ledger.finish(job_id, state)
    log.info("job ended", job=job_id, state=state.value, succeeded=totals.succeeded, failed=totals.failed)
    return state


def _receipts(store: Store, keys: JobKeys, spec: JobSpec) -> Iterator[Receipt]:
    """The receipts of all parts that exist, in order; one that was lost is made anew from its part."""
    for shard in range(spec.shards):
        try:
            yield msgspec.json.decode(store.get(keys.receipt(shard)), type=Receipt)
        except MissingObjectError:
            try:
                data = store.get(keys.part(shard))
            except MissingObjectError:
                continue
            yield part.receipt(shard, data, epoch=0)


def _kept_alive(ledger: Ledger, job_id: str, receipts: Iterator[Receipt]) -> Iterator[Receipt]:
    """The same, with a word to the ledger now and then: a job may have a hundred thousand parts."""
    told = time.monotonic()
    for receipt in receipts:
        if time.monotonic() - told > FINALIZE_SECONDS / 4:
            told = time.monotonic()
            ledger.keep_finalizing(job_id, FINALIZE_SECONDS)
        yield receipt


def _write_parts(sink: Sink, spec: JobSpec, receipts: Iterator[Receipt]) -> tuple[Totals, set[str]]:
    """Stream the list of parts, so that a manifest of very many needs no memory; their sums and models."""
    succeeded = failed = prompt_tokens = completion_tokens = 0
    device_seconds = wasted_device_seconds = 0.0
    hashes: set[str] = set()
    sink.write(b'{"parts":[')
    for place, receipt in enumerate(receipts):
        sink.write((b",\n" if place else b"\n") + msgspec.json.encode(receipt))
        succeeded += receipt.succeeded
        failed += receipt.failed
        prompt_tokens += receipt.prompt_tokens
        completion_tokens += receipt.completion_tokens
        device_seconds += receipt.device_seconds
        wasted_device_seconds += receipt.wasted_device_seconds
        if receipt.model_hash is not None:
            hashes.add(receipt.model_hash)
    sink.write(b"\n],\n")
    done = succeeded + failed
    totals = Totals(
        lines=spec.lines,
        succeeded=succeeded,
        failed=failed,
        not_run=spec.lines - done,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        device_seconds=round(device_seconds, 3),
        device_seconds_per_1000_lines=round(1000 * device_seconds / done, 3) if done else 0.0,
        wasted_device_seconds=round(wasted_device_seconds, 3),
    )
    return totals, hashes


def _write_rest(
    sink: Sink,
    status: JobStatus,
    state: JobState,
    totals: Totals,
    model: dict[str, list[str]],
    versions: dict[str, str],
) -> None:
    rest = {
        "job": status.spec,
        "state": state.value,
        "totals": totals,
        "model": {"name": status.spec.model, **model},
        "started_at": status.started_at,
        "finished_at": time.time(),
        "versions": {"longhaul": version("longhaul"), **versions},
    }
    sink.write(msgspec.json.encode(rest)[1:] + b"\n")


def _final_state(status: JobStatus, totals: Totals) -> JobState:
    """What called the job off, else whether any line succeeded: a job of failures alone is not completed."""
    if status.outcome:
        return JobState(status.outcome)
    return JobState.COMPLETED if totals.succeeded else JobState.FAILED
