"""Results on their way to the user's files: which line goes where, and what was written.

Owns how they reach a file: whole or not at all. What the lines are is the affair of `producer.results` and
`producer.merge`.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from jobs.dialogue import outcome
from jobs.errors import LineError, StoreError
from jobs.records import JobSpec
from jobs.storage import Store
from producer.merge import as_of, merged_results
from producer.results import result_lines, stored_spec

#: Names standard output.
STDOUT = Path("-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What a job's results came to."""

    succeeded: int
    failed: int
    #: Lines of the job that have no result: not generated yet, or never will be after a cancel.
    missing: int
    #: Lines that a retry gave.
    retried: int = 0


def write_results(
    store: Store, job_id: str, *, output: Path, errors: Path | None, partial: bool, merge: bool = False
) -> Written:
    """Write the results to `output`, but failed lines to `errors` if it is given; `merge` joins retries."""
    spec = stored_spec(store, job_id)
    succeeded = failed = retried = 0
    with ExitStack() as files:
        good = files.enter_context(_target(output))
        bad = good if errors is None else files.enter_context(_target(errors))
        for each in _merged(store, spec, partial) if merge else _own(store, spec, partial):
            succeeded += each.succeeded
            failed += not each.succeeded
            retried += each.retried
            (good if each.succeeded else bad).write(each.line)
    missing = spec.lines - succeeded - failed
    return Written(succeeded=succeeded, failed=failed, missing=missing, retried=retried)


class _Outgoing(NamedTuple):
    line: bytes
    succeeded: bool
    retried: bool


def _own(store: Store, spec: JobSpec, partial: bool) -> Iterator[_Outgoing]:
    for line in result_lines(store, spec, partial=partial):
        try:
            succeeded = outcome(line).succeeded
        except LineError as error:
            raise StoreError(f"{store.url}: a part of {spec.id} is damaged: {error}") from error
        yield _Outgoing(line, succeeded, retried=False)


def _merged(store: Store, spec: JobSpec, partial: bool) -> Iterator[_Outgoing]:
    for result in merged_results(store, spec, partial=partial):
        yield _Outgoing(as_of(spec.id, result), result.succeeded, retried=result.job.id != spec.id)


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
