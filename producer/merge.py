"""A job and its retries as one stream of results, in the order of the job's input.

A line that failed or is missing is replaced by its retry's line, and a retry's lines by those of its own
retries. Owns which line counts, and the ids that make it look like one job's. Reads the store alone, and
holds a chunk of each job's parts, however many lines there are.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import merge
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

import msgspec

from jobs.errors import LineError, StoreError, UnknownJobError
from jobs.origin import read_origins
from jobs.records import JobKeys, JobSpec
from jobs.renaming import renamed
from jobs.storage import Store
from producer.results import PARTIAL_ADVICE, check_ended, result_lines, stored_spec


@dataclass(frozen=True, slots=True)
class Family:
    """A job and its retries, each with its own."""

    spec: JobSpec
    retries: tuple["Family", ...]

    def members(self) -> Iterator[JobSpec]:
        """The job and all that came of it."""
        yield self.spec
        for each in self.retries:
            yield from each.members()


class Result(NamedTuple):
    """One output line, and whose it is."""

    #: The line's number in the job that is looked at.
    number: int
    succeeded: bool
    #: The job that has the line in its parts.
    job: JobSpec
    #: As that job wrote it, newline included.
    line: bytes


def family_of(store: Store, spec: JobSpec) -> Family:
    """The job with its retries; what was announced and never became a job is left out."""
    prefix = f"{JobKeys(spec.id).retries}/"
    retries = []
    for key in store.list(prefix):
        try:
            retry = stored_spec(store, key.removeprefix(prefix))
        except UnknownJobError:  # its submission broke off
            continue
        retries.append(family_of(store, retry))
    return Family(spec, tuple(retries))


def merged(store: Store, family: Family) -> Iterator[Result]:
    """The results that count, by number: a success before a failure, and of equals the latest job's.

    Numbers of lines without any result are left out. Takes parts as they are.
    """
    own = _own(store, family.spec)
    retries = (
        _in_origin(merged(store, retry), read_origins(store, JobKeys(retry.spec.id)), retry.spec.id)
        for retry in family.retries
    )
    for _, results in groupby(merge(own, *retries, key=_number), key=_number):
        yield max(results, key=_worth)


def merged_lines(store: Store, spec: JobSpec, *, partial: bool = False) -> Iterator[bytes]:
    """Output lines of the job and its retries as if they were one job; see `result_lines`."""
    return (as_of(spec.id, result) for result in merged_results(store, spec, partial=partial))


def merged_results(store: Store, spec: JobSpec, *, partial: bool) -> Iterator[Result]:
    """`merged`, but `UnfinishedError` while results may still come, unless `partial`."""
    family = family_of(store, spec)
    for each in family.members() if not partial else ():
        check_ended(store, each, else_advice=PARTIAL_ADVICE)
    return merged(store, family)


def as_of(job_id: str, result: Result) -> bytes:
    """The line as this job would have written it."""
    if result.job.id == job_id:
        return result.line
    try:
        return renamed(result.line, job_id, result.number) + b"\n"
    except LineError as error:
        raise StoreError(f"a part of {result.job.id} is damaged: {error}") from error


_number = attrgetter("number")


def _worth(result: Result) -> tuple[bool, float, str]:
    return result.succeeded, result.job.created_at, result.job.id


class _Response(msgspec.Struct, frozen=True):
    """That there is one; what it says is skipped."""


class _Head(msgspec.Struct, frozen=True):
    """What of an output line decides."""

    id: str
    response: _Response | None


_head = msgspec.json.Decoder(_Head)


def _own(store: Store, spec: JobSpec) -> Iterator[Result]:
    for line in result_lines(store, spec, partial=True):
        try:
            head = _head.decode(line)
            number = int(head.id.rpartition("-")[2])
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
            raise StoreError(f"{store.url}: a part of {spec.id} is damaged: {error}") from error
        yield Result(number, head.response is not None, spec, line)


def _in_origin(results: Iterable[Result], origins: Iterable[int], job_id: str) -> Iterator[Result]:
    """A retry's results under the numbers that their lines have in the job that is tried again."""
    numbered = enumerate(origins, start=1)
    for result in results:
        number = next((origin for line, origin in numbered if line == result.number), None)
        if number is None:
            raise StoreError(f"origin.idx of {job_id} is damaged: it has no line {result.number}")
        yield result._replace(number=number)
