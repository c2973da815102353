"""A retry: a job of those lines of another that failed or have no result.

Owns which lines those are, and what of them an option of the retry replaces. Streams them shard by shard
from the input of the job that is tried again; a line keeps its bytes unless an option takes the place of one
of its fields. A line that another retry has answered since is not tried again.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import BinaryIO

import msgspec

from jobs.dialogue import Sampling
from jobs.errors import UnknownJobError
from jobs.ledger import Ledger
from jobs.origin import encode_origin
from jobs.records import JobKeys, JobSpec, Priority, new_job_id
from jobs.shard_index import read_rejects, read_shard
from jobs.storage import Store
from producer.deadline import check_deadline
from producer.merge import Family, family_of, merged
from producer.results import check_ended, stored_spec
from producer.submission import Services, Submission, check_sampling, create

_BOM = b"\xef\xbb\xbf"
#: Another name that a line may have for a field of `Sampling`.
_ALIASES = {"max_tokens": "max_completion_tokens"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """What the user asks for; what is not given is as in the job that is tried again."""

    job: str
    #: Whether lines without any result, as a cancelled job has them, are left alone.
    failed_only: bool = False
    #: Goes before what the job says, and before what a line says for itself.
    sampling: Sampling = field(default_factory=Sampling)
    priority: Priority | None = None
    #: Unix time; the deadline of the job that is tried again does not hold for the retry.
    deadline: float | None = None

    def __post_init__(self) -> None:
        check_deadline(self.deadline)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retried:
    """What became of a retry."""

    #: The job that is tried again. Its `rejected` lines would be refused again and are left out.
    origin: JobSpec
    #: None where there is nothing to try again: no job was made.
    submission: Submission | None


def retry(order: Retry, services: Services) -> Retried:
    """Make a job of the lines that are to be tried again.

    `UnfinishedError` while the job or a retry of it may still bring results; else as `submit`.
    """
    store = services.store
    workers = services.ledger.workers()
    origin = stored_spec(store, order.job)
    family = family_of(store, origin)
    _check_ended(store, services.ledger, family)
    draft = _draft(order, origin)
    check_sampling(draft.sampling)
    with tempfile.TemporaryFile(prefix="longhaul-") as origins:
        chunks = _lines_to_retry(store, family, order, origins)
        first = next(chunks, None)
        if first is None:
            return Retried(origin=origin, submission=None)
        submission = create(draft, chain((first,), chunks), services, workers, origins=origins)
    return Retried(origin=origin, submission=submission)


def _draft(order: Retry, origin: JobSpec) -> JobSpec:
    return msgspec.structs.replace(
        origin,
        id=new_job_id(),
        source=f"retry of {origin.id}",
        sampling=order.sampling.over(origin.sampling),
        priority=order.priority or origin.priority,
        deadline=order.deadline,
        retry_of=origin.id,
        reuse_of=None,
    )


def _check_ended(store: Store, ledger: Ledger, family: Family) -> None:
    """A retry that the ledger does not know broke off, or ended long ago: it brings nothing more."""
    check_ended(store, family.spec)
    for spec in family.members():
        if spec is not family.spec and _is_known(ledger, spec.id):
            check_ended(store, spec)


def _is_known(ledger: Ledger, job_id: str) -> bool:
    try:
        ledger.status(job_id)
    except UnknownJobError:
        return False
    return True


def _lines_to_retry(store: Store, family: Family, order: Retry, origins: BinaryIO) -> Iterator[bytes]:
    """The lines, newlines included, a shard's at a time; their numbers go to `origins`."""
    keys = JobKeys(family.spec.id)
    replaced = _replaced_fields(order.sampling)
    results = merged(store, family)
    due = next(results, None)
    for place in range(family.spec.shards):
        shard = read_shard(store, keys, place)
        numbers = range(shard.first_line, shard.first_line + shard.lines)
        done = set(numbers) if order.failed_only else set()
        while due is not None and due.number < numbers.stop:
            (done.add if due.succeeded else done.discard)(due.number)
            due = next(results, None)
        if len(done) == shard.lines:
            continue
        done.update(read_rejects(store, keys, shard))
        wanted = [number for number in numbers if number not in done]
        if not wanted:
            continue  # and nothing to read: a line that was refused for its length may be of any
        lines = store.get_range(keys.input, shard.offset, shard.length).split(b"\n")
        origins.writelines(map(encode_origin, wanted))
        yield b"".join(_without(lines[number - shard.first_line], replaced) + b"\n" for number in wanted)


def _replaced_fields(sampling: Sampling) -> frozenset[str]:
    given = {name for name in sampling.__struct_fields__ if getattr(sampling, name) is not None}
    return frozenset(given | {_ALIASES[name] for name in given & _ALIASES.keys()})


_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


def _without(line: bytes, names: frozenset[str]) -> bytes:
    """The line without these fields, its own and its body's; a line that has none of them as it is."""
    text = line.removeprefix(_BOM)
    if not names or not text.lstrip().startswith(b"{"):
        return line
    fields = _fields.decode(text)
    kept = {name: value for name, value in fields.items() if name not in names}
    body = fields.get("body")
    if body is not None and bytes(body).startswith(b"{"):
        kept["body"] = msgspec.Raw(_without(bytes(body), names))
    return msgspec.json.encode(kept) if kept != fields else line
