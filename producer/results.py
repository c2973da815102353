"""A job's results: its parts one after the other, which is the order of the input.

Reads the store alone, so that results can be had without Redis. Never holds more than one chunk of a part,
and never joins jobs: see `producer.merge`.
"""

from collections.abc import Iterator

import msgspec

from jobs.errors import MissingObjectError, StoreError, UnknownJobError
from jobs.records import JobKeys, JobSpec
from jobs.storage import Store
from producer.errors import UnfinishedError

#: What else can be done by those who want results.
PARTIAL_ADVICE = "; --partial writes what there is"


def stored_spec(store: Store, job_id: str) -> JobSpec:
    """What was asked for; `UnknownJobError` if the store has no such job."""
    keys = JobKeys(job_id)
    try:
        return msgspec.json.decode(store.get(keys.spec), type=JobSpec)
    except MissingObjectError as error:
        raise UnknownJobError(f"no job {job_id} in the store {store.url}") from error
    except msgspec.DecodeError as error:
        raise StoreError(f"{store.url}: {keys.spec} is damaged: {error}") from error


def check_ended(store: Store, spec: JobSpec, *, else_advice: str = "") -> None:
    """`UnfinishedError` while parts of the job may still come."""
    if store.size(JobKeys(spec.id).manifest) is None:
        whose = "" if spec.retry_of is None else f", a retry of {spec.retry_of},"
        advice = f"`producer watch {spec.id}` waits for it"
        raise UnfinishedError(f"job {spec.id}{whose} has not finished", advice + else_advice)


def result_lines(store: Store, spec: JobSpec, *, partial: bool = False) -> Iterator[bytes]:
    """Output lines with their newlines, in the order of the input.

    `UnfinishedError` while parts may still come, unless `partial`: then those that exist. A job that was
    called off has what was finished before.
    """
    keys = JobKeys(spec.id)
    if not partial:
        check_ended(store, spec, else_advice=PARTIAL_ADVICE)
    whole = not partial and store.size(keys.success) is not None
    for number in range(spec.shards):
        try:
            yield from _lines(store.stream(keys.part(number)))
        except MissingObjectError:
            if whole:
                raise


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Result lines are of our own making: as long as their answers, never unbounded."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line + b"\n"
    if rest:
        yield rest + b"\n"
