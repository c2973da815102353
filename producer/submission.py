"""From an order to a registered job, in one pass over the input.

The order of writes makes it safe, whatever dies and whenever. The input's bytes, `rejects.jsonl` and
`shards.idx` go to the store first, then `job.json`, then the ledger. A job exists from the moment that the
ledger has it, and by then all that a worker will read is whole in the store; an upload that breaks off leaves
no object. So either no job exists, or it is complete. What lies in the store of a job that was never
registered is removed where that is possible, and never once the ledger may have taken it. The hints to the
workers come last and may get lost: the reconciler sends what is due.

Owns that order. What a line means is said in `jobs.dialogue`, what an input is in `producer.survey`.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from celery import Celery

from jobs.broker import publish
from jobs.dialogue import PLACEHOLDER, Sampling
from jobs.errors import LedgerError, StoreError
from jobs.ledger import Ledger
from jobs.records import JobKeys, JobSpec, Priority, Reject, new_job_id
from jobs.settings import Settings
from jobs.storage import Store
from producer.errors import InputError, OptionError, RefusedError, UnconfirmedError
from producer.inputs import read, resolve
from producer.models import chosen_model, is_served
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
    #: Whether one unusable line refuses the whole.
    strict: bool = False

    def __post_init__(self) -> None:
        if self.prompt_template is not None and PLACEHOLDER not in self.prompt_template:
            raise OptionError(
                "the prompt template has no place for the text", f"write {PLACEHOLDER} where it goes"
            )
        if contradiction := self.sampling.contradiction:
            raise OptionError(contradiction, "raise the one or lower the other")


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


def submit(order: Order, store: Store, ledger: Ledger, app: Celery, settings: Settings) -> Submission:
    """Make a job of the order.

    No job exists after an `InputError` (nothing to read), a `RefusedError` (strict, and lines are unusable),
    a `ModelError`, `StoreError` or `LedgerError`; one may exist after an `UnconfirmedError`.
    """
    sources = resolve(order.sources)
    workers = ledger.workers()
    model = chosen_model(order.model, settings, workers)
    store.probe()
    keys = JobKeys(job_id := new_job_id())
    with tempfile.TemporaryDirectory(prefix="longhaul-") as folder, _removed_on_failure(store, keys):
        survey = Survey(Path(folder), settings)
        with store.writer(keys.input) as sink:
            survey.run(read(sources, settings), sink)
            survey.conclude()
            _check(survey, strict=order.strict)
        _upload(store, keys.rejects, survey.rejects)
        _upload(store, keys.shards, survey.index)
        spec = _spec(job_id, model, order, survey)
        store.put(keys.spec, msgspec.json.encode(spec))
    _register(ledger, spec)
    return Submission(
        spec=spec,
        unusable=survey.unusable,
        served=is_served(model, workers),
        delay=_dispatch(ledger, app, model, settings.backlog),
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


def _spec(job_id: str, model: str, order: Order, survey: Survey) -> JobSpec:
    return JobSpec(
        id=job_id,
        model=model,
        created_at=time.time(),
        source=" ".join(order.sources)[:_SOURCE_CHARS],
        system=order.system,
        prompt_template=order.prompt_template,
        sampling=order.sampling,
        priority=order.priority,
        lines=survey.lines,
        rejected=survey.rejected,
        shards=survey.shards,
        input_bytes=survey.bytes,
        input_sha256=survey.sha256,
    )


@contextmanager
def _removed_on_failure(store: Store, keys: JobKeys) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with suppress(StoreError):  # what made us fail may keep us from tidying up as well
            store.delete([keys.spec, keys.shards, keys.rejects, keys.input])
        raise


def _upload(store: Store, key: str, path: Path) -> None:
    with store.writer(key) as sink, path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            sink.write(chunk)


def _register(ledger: Ledger, spec: JobSpec) -> None:
    try:
        ledger.register(spec)
    except LedgerError as error:
        raise UnconfirmedError(
            f"job {spec.id} is stored, but Redis has not confirmed it: {error}",
            f"`producer status {spec.id}` says whether it runs; if it is unknown there, submit again",
        ) from error


def _dispatch(ledger: Ledger, app: Celery, model: str, backlog: int) -> str | None:
    try:
        publish(app, model, ledger.dispatch(model, backlog))
    except LedgerError as error:
        return str(error)
    return None
