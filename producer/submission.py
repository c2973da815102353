"""From an order to a registered job, in one pass over the input.

The order of writes makes it safe, whatever dies and whenever. The input's bytes, `rejects.jsonl` and
`shards.idx` go to the store first, of a retry also `origin.idx` and its mark in the job that is tried again,
then `job.json`, then the ledger. A job exists from the moment that the ledger has it, and by then all that a
worker will read is whole in the store; an upload that breaks off leaves no object. So either no job exists,
or it is complete. What lies in the store of a job that was never registered is removed where that is
possible, and never once the ledger may have taken it; a mark without its `job.json` means nothing. The hints
to the workers come last and may get lost: the reconciler sends what is due.

Owns that order. What a line means is said in `jobs.dialogue`, what an input is in `producer.survey`.
"""

import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import msgspec
from celery import Celery

from jobs.broker import publish
from jobs.dialogue import PLACEHOLDER, Sampling
from jobs.errors import LedgerError, StoreError
from jobs.ledger import Ledger, WorkerInfo
from jobs.records import JobKeys, JobSpec, Priority, Reject, new_job_id
from jobs.settings import Settings
from jobs.storage import Store
from producer.deadline import check_deadline
from producer.errors import InputError, OptionError, RefusedError, UnconfirmedError
from producer.inputs import read, resolve
from producer.models import chosen_model, is_served
from producer.reuse import earlier_job, fingerprint, index_key
from producer.survey import Survey

_CHUNK = 1024 * 1024
_SOURCE_CHARS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What the user asks for."""

    #: Paths, globs, `-` for standard input, and object URLs.
    sources: tuple[str, ...]
    #: Its name; None is the only one that workers serve.
    model: str | None = None
    system: str | None = None
    prompt_template: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    priority: Priority = Priority.NORMAL
    #: Unix time by which the job must have ended.
    deadline: float | None = None
    #: Whether one unusable line refuses the whole.
    strict: bool = False
    #: Whether finished lines of an earlier job of the same content, model and parameters are taken over.
    reuse: bool = False

    def __post_init__(self) -> None:
        if self.prompt_template is not None and PLACEHOLDER not in self.prompt_template:
            raise OptionError(
                "the prompt template has no place for the text", f"write {PLACEHOLDER} where it goes"
            )
        check_sampling(self.sampling)
        check_deadline(self.deadline)


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What a job is made with."""

    settings: Settings
    store: Store
    ledger: Ledger
    app: Celery


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A registered job."""

    spec: JobSpec
    #: Its first unusable lines.
    unusable: tuple[Reject, ...]
    #: Whether a living worker serves its model.
    served: bool
    #: Why the workers could not be told at once; the job runs none the less.
    delay: str | None


def check_sampling(sampling: Sampling) -> None:
    """`OptionError` for what can not be at once."""
    if contradiction := sampling.contradiction:
        raise OptionError(contradiction, "raise the one or lower the other")


def submit(order: Order, services: Services) -> Submission:
    """Make a job of the order.

    No job exists after an `InputError` (nothing to read), a `RefusedError` (strict, and lines are unusable),
    a `ModelError`, `StoreError` or `LedgerError`; one may exist after an `UnconfirmedError`.
    """
    settings = services.settings
    sources = resolve(order.sources)
    workers = services.ledger.workers()
    draft = JobSpec(
        id=new_job_id(),
        model=chosen_model(order.model, settings, workers),
        created_at=time.time(),
        source=" ".join(order.sources)[:_SOURCE_CHARS],
        system=order.system,
        prompt_template=order.prompt_template,
        sampling=order.sampling,
        priority=order.priority,
        deadline=order.deadline,
        lines=0,
        rejected=0,
        shards=0,
        input_bytes=0,
        input_sha256="",
    )
    chunks = read(sources, settings)
    return create(draft, chunks, services, workers, strict=order.strict, reuse=order.reuse)


def create(
    draft: JobSpec,
    chunks: Iterable[bytes],
    services: Services,
    workers: Sequence[WorkerInfo],
    *,
    strict: bool = False,
    reuse: bool = False,
    origins: BinaryIO | None = None,
) -> Submission:
    """Make a job of lines; what `draft` says about them is filled in.

    `origins` is the `origin.idx` of a retry: a file that is complete once `chunks` is exhausted.
    """
    store, settings = services.store, services.settings
    keys = JobKeys(draft.id)
    store.probe()
    with tempfile.TemporaryDirectory(prefix="longhaul-") as folder, _removed_on_failure(store, draft):
        survey = Survey(Path(folder), settings)
        with store.writer(keys.input) as sink:
            survey.run(chunks, sink)
            survey.conclude()
            _check(survey, strict=strict)
        for key, path in ((keys.rejects, survey.rejects), (keys.shards, survey.index)):
            with path.open("rb") as file:
                _upload(store, key, file)
        if origins is not None:
            origins.seek(0)
            _upload(store, keys.origin, origins)
        spec = _counted(draft, survey)
        content = fingerprint(spec, settings)
        if reuse:
            spec = msgspec.structs.replace(spec, reuse_of=earlier_job(store, content))
        if (mark := _mark(spec)) is not None:
            store.put(mark, b"")
        store.put(keys.spec, msgspec.json.encode(spec))
        store.put(index_key(content, spec.id), b"")
    _register(services.ledger, spec)
    return Submission(
        spec=spec,
        unusable=survey.unusable,
        served=is_served(spec.model, workers),
        delay=_dispatch(services, spec.model),
    )


def _check(survey: Survey, *, strict: bool) -> None:
    if not survey.lines:
        raise InputError("the input is empty", "give at least one line of JSON")
    if strict and survey.rejected:
        raise RefusedError(
            f"{survey.rejected} of {survey.lines} lines are unusable",
            "correct them, or submit without --strict and get them as error lines",
            survey.unusable,
            survey.rejected,
        )


def _counted(draft: JobSpec, survey: Survey) -> JobSpec:
    return msgspec.structs.replace(
        draft,
        created_at=time.time(),
        lines=survey.lines,
        rejected=survey.rejected,
        shards=survey.shards,
        input_bytes=survey.bytes,
        input_sha256=survey.sha256,
    )


def _mark(spec: JobSpec) -> str | None:
    """The object by which the job that is tried again knows of its retry."""
    return None if spec.retry_of is None else f"{JobKeys(spec.retry_of).retries}/{spec.id}"


@contextmanager
def _removed_on_failure(store: Store, draft: JobSpec) -> Iterator[None]:
    keys = JobKeys(draft.id)
    made = (keys.spec, _mark(draft), keys.origin, keys.shards, keys.rejects, keys.input)
    try:
        yield
    except BaseException:
        with suppress(StoreError):  # what made us fail may keep us from tidying up as well
            store.delete(key for key in made if key is not None)
        raise


def _upload(store: Store, key: str, file: BinaryIO) -> None:
    with store.writer(key) as sink:
        while chunk := file.read(_CHUNK):
            sink.write(chunk)


def _register(ledger: Ledger, spec: JobSpec) -> None:
    try:
        ledger.register(spec)
    except LedgerError as error:
        raise UnconfirmedError(
            f"job {spec.id} is stored, but Redis has not confirmed it: {error}",
            f"`producer status {spec.id}` says whether it runs; if it is unknown there, try again",
        ) from error


def _dispatch(services: Services, model: str) -> str | None:
    try:
        publish(services.app, model, services.ledger.dispatch(model, services.settings.backlog))
    except LedgerError as error:
        return str(error)
    return None
