"""The end of a job: its manifest, which is its receipt, and its final state.

Owns what the manifest says. It is written from what is in the store, as often as need be with the same
outcome; the ledger learns the final state last.
"""

import time
from collections.abc import Iterator
from importlib.metadata import version

import msgspec
import structlog

from jobs.errors import MissingObjectError, StoreError
from jobs.ledger import Ledger
from jobs.records import JobKeys, JobSpec, JobState, JobStatus, Receipt
from jobs.storage import Sink, Store
from worker import part

log = structlog.get_logger(__name__)

#: Made here, before there are threads: msgspec's first decode of a type is not safe among several.
_receipt = msgspec.json.Decoder(Receipt)

#: Ends the list of parts: what follows is small, whatever the job.
_AFTER_PARTS = b"\n],\n"
_TAIL_BYTES = 256 * 1024
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


class _Ending(msgspec.Struct, frozen=True):
    """Of what follows the list of parts, as much as tells how the job ended."""

    state: str
    finished_at: float


def finalize(store: Store, ledger: Ledger, job_id: str, engine_versions: dict[str, str]) -> JobState:
    """Write the manifest of a job whose shards are all done, and give it its final state."""
    status = ledger.status(job_id)
    if status.state is not JobState.FINALIZING:
        return status.state
    keys = JobKeys(job_id)
    with store.writer(keys.manifest) as sink:
        receipts = _kept_alive(ledger, job_id, _receipts(store, keys, status.spec))
        totals, hashes = _write_parts(sink, status.spec, receipts)
        state = _final_state(status, totals)
        versions = {"longhaul": version("longhaul"), **engine_versions}
        made_by = {"model": {"name": status.spec.model, "hashes": sorted(hashes)}, "versions": versions}
        _write_rest(sink, status, state, totals, made_by)
    if state is JobState.COMPLETED:
        store.put(keys.success, b"")
    ledger.finish(job_id, state)
    log.info("job ended", job=job_id, state=state.value, succeeded=totals.succeeded, failed=totals.failed)
    return state


def _receipts(store: Store, keys: JobKeys, spec: JobSpec) -> Iterator[Receipt]:
    """The receipts of all parts that exist, in order."""
    for shard in range(spec.shards):
        try:
            yield stored_receipt(store, keys, shard)
        except MissingObjectError:
            continue


def stored_receipt(store: Store, keys: JobKeys, shard: int) -> Receipt:
    """The receipt of a part, made anew where it was lost; `MissingObjectError` if there is no part."""
    known = known_receipt(store, keys, shard)
    return part.receipt(shard, store.get(keys.part(shard)), epoch=0) if known is None else known


def known_receipt(store: Store, keys: JobKeys, shard: int) -> Receipt | None:
    """The receipt that was written beside a part; None if it never was."""
    try:
        data = store.get(keys.receipt(shard))
    except MissingObjectError:
        return None
    try:
        return _receipt.decode(data)
    except msgspec.DecodeError as error:
        raise StoreError(f"{store.url}: {keys.receipt(shard)} is damaged: {error}") from error


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
    sink.write(b'{"job":' + msgspec.json.encode(spec) + b',\n"parts":[')
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
    sink.write(_AFTER_PARTS)
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
    made_by: dict[str, object],
) -> None:
    rest = {
        "state": state.value,
        "totals": totals,
        "started_at": status.started_at,
        "finished_at": time.time(),
        **made_by,
    }
    sink.write(msgspec.json.encode(rest)[1:] + b"\n")


def read_ending(store: Store, keys: JobKeys) -> tuple[JobState, float] | None:
    """The final state in a job's manifest, and its Unix time; None without a manifest.

    `StoreError` if it is damaged.
    """
    size = store.size(keys.manifest)
    if size is None:
        return None
    length = min(size, _TAIL_BYTES)
    _, found, rest = store.get_range(keys.manifest, size - length, length).rpartition(_AFTER_PARTS)
    try:
        ending = msgspec.json.decode(b"{" + rest if found else b"", type=_Ending)
        return JobState(ending.state), ending.finished_at
    except (msgspec.DecodeError, ValueError) as error:
        raise StoreError(f"{store.url}: {keys.manifest} is damaged: {error}") from error


def _final_state(status: JobStatus, totals: Totals) -> JobState:
    """What called the job off, else whether any line succeeded: a job of failures alone is not completed."""
    if status.outcome:
        return JobState(status.outcome)
    return JobState.COMPLETED if totals.succeeded else JobState.FAILED
