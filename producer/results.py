"""A job's results: its parts one after the other, which is the order of the input.

Reads the store alone, so that results can be had without Redis. Owns how they reach a file: whole or not at
all. Never holds more than one chunk of a part.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from jobs.dialogue import outcome
from jobs.errors import LineError, MissingObjectError, StoreError, UnknownJobError
from jobs.records import JobKeys, JobSpec
from jobs.storage import Store
from producer.errors import UnfinishedError

#: Names standard output.
STDOUT = Path("-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What a job's results came to."""

    succeeded: int
    failed: int
    #: Lines of the job that have no result: not generated yet, or never will be after a cancel.
    missing: int


def stored_spec(store: Store, job_id: str) -> JobSpec:
    """What was asked for; `UnknownJobError` if the store has no such job."""
    keys = JobKeys(job_id)
    try:
        return msgspec.json.decode(store.get(keys.spec), type=JobSpec)
    except MissingObjectError as error:
        raise UnknownJobError(f"no job {job_id} in the store {store.url}") from error
    except msgspec.DecodeError as error:
        raise StoreError(f"{store.url}: {keys.spec} is damaged: {error}") from error


def result_lines(store: Store, spec: JobSpec, *, partial: bool = False) -> Iterator[bytes]:
    """Output lines with their newlines, in the order of the input.

    `UnfinishedError` while parts may still come, unless `partial`: then those that exist. A job that was
    called off has what was finished before.
    """
    keys = JobKeys(spec.id)
    if not partial and store.size(keys.manifest) is None:
        raise UnfinishedError(
            f"job {spec.id} has not finished",
            f"`producer watch {spec.id}` waits for it; --partial writes what there is",
        )
    whole = not partial and store.size(keys.success) is not None
    for number in range(spec.shards):
        try:
            yield from _lines(store.stream(keys.part(number)))
        except MissingObjectError:
            if whole:
                raise


def write_results(store: Store, job_id: str, *, output: Path, errors: Path | None, partial: bool) -> Written:
    """Write the results to `output`, but failed lines to `errors` if it is given."""
    spec = stored_spec(store, job_id)
    succeeded = failed = 0
    with ExitStack() as files:
        good = files.enter_context(_target(output))
        bad = good if errors is None else files.enter_context(_target(errors))
        for line in result_lines(store, spec, partial=partial):
            if _succeeded(line, store, job_id):
                succeeded += 1
                good.write(line)
            else:
                failed += 1
                bad.write(line)
    return Written(succeeded=succeeded, failed=failed, missing=spec.lines - succeeded - failed)


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Result lines are of our own making: as long as their answers, never unbounded."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line + b"\n"
    if rest:
        yield rest + b"\n"


def _succeeded(line: bytes, store: Store, job_id: str) -> bool:
    try:
        return outcome(line).succeeded
    except LineError as error:
        raise StoreError(f"{store.url}: a part of {job_id} is damaged: {error}") from error


@contextmanager
def _target(path: Path) -> Iterator[BinaryIO]:
    """A file that appears whole or not at all; what is no regular file (a pipe, a device) is just written."""
    if path == STDOUT:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    if path.exists() and not path.is_file():
        with path.open("wb") as direct:
            yield direct
        return
    target = path.resolve()  # a link stays one
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    staged = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        staged.chmod(_mode())
        staged.replace(target)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise


def _mode() -> int:
    """What `open` would have given: mkstemp's own mode hides the file from the group."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
