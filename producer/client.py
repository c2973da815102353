"""What the commands do, for Python programs: submit, follow, read, retry and cancel jobs.

Owns nothing but the connections. Never prints and never exits.

    client = Client(load_settings())
    job = client.submit(Order(sources=("dialogues.jsonl",), model="internlm2")).spec.id
    for status in client.watch(job):
        print(status.done_lines)
    for line in client.results(job):
        ...
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from jobs.broker import celery_app
from jobs.errors import LedgerError, StoreError
from jobs.ledger import Ledger, WorkerInfo
from jobs.records import JobKeys, JobState, JobStatus
from jobs.settings import Settings
from jobs.storage import Store
from producer.merge import merged_lines
from producer.results import result_lines, stored_spec
from producer.retry import Retried, Retry, retry
from producer.submission import Order, Services, Submission, submit


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """What became of a cancel."""

    #: The job's state afterwards; of a job that had ended, its own.
    state: JobState
    #: Why the store does not know of it: a ledger that is rebuilt from the store would go on with the job.
    unmarked: str | None = None


class Client:
    """One Redis and one store, as the settings name them; nothing is contacted before it is needed."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.ledger = Ledger.open(settings)

    @property
    def store(self) -> Store:
        """The store of inputs and results."""
        return Store.open(self.settings)

    def submit(self, order: Order) -> Submission:
        """Make a job of the order; see `producer.submission.submit`."""
        return submit(order, self._services())

    def retry(self, order: Retry) -> Retried:
        """Make a job of another's failed and missing lines; see `producer.retry.retry`."""
        return retry(order, self._services())

    def status(self, job_id: str) -> JobStatus:
        """The job now; `UnknownJobError`."""
        return self.ledger.status(job_id)

    def watch(self, job_id: str, *, every: float = 0.5, patience: float = 300.0) -> Iterator[JobStatus]:
        """The job's status every so many seconds, the final one last.

        Redis may be away for `patience` seconds at a time, as the job does not need us: meanwhile the last
        status is repeated with that for its problem. `LedgerError` after that, or at once if it is away to
        begin with.
        """
        heard = time.monotonic()
        status = self.ledger.status(job_id)
        while True:
            yield status
            if status.state.final:
                return
            time.sleep(every)
            try:
                status = self.ledger.status(job_id)
                heard = time.monotonic()
            except LedgerError as error:
                if time.monotonic() - heard > patience:
                    raise
                status = msgspec.structs.replace(status, problem=f"waiting for Redis: {error}")

    def results(self, job_id: str, *, partial: bool = False, merge: bool = False) -> Iterator[bytes]:
        """Output lines in the order of the input; see `producer.results.result_lines`.

        With `merge` also those of the job's retries; see `producer.merge`.
        """
        lines = merged_lines if merge else result_lines
        return lines(self.store, stored_spec(self.store, job_id), partial=partial)

    def cancel(self, job_id: str) -> Cancelled:
        """Call the job off. First the store is told, so that no rebuilt ledger takes the job up again."""
        state = self.ledger.status(job_id).state
        if state.final:
            return Cancelled(state=state)
        unmarked = None
        try:
            self.store.put(JobKeys(job_id).called_off, JobState.CANCELLED.value.encode())
        except StoreError as error:
            unmarked = str(error)
        return Cancelled(state=self.ledger.cancel(job_id), unmarked=unmarked)

    def jobs(self, limit: int = 50) -> list[JobStatus]:
        """The latest jobs, newest first."""
        return self.ledger.jobs(limit)

    def workers(self) -> list[WorkerInfo]:
        """The workers that live."""
        return self.ledger.workers()

    def close(self) -> None:
        """Give the connections back."""
        self.ledger.close()

    def _services(self) -> Services:
        return Services(
            settings=self.settings,
            store=self.store,
            ledger=self.ledger,
            app=celery_app(self.settings),
        )
