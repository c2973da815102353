"""What the commands do, for Python programs: submit, follow, read and cancel jobs.

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

import msgspec

from jobs.broker import celery_app
from jobs.errors import LedgerError
from jobs.ledger import Ledger, WorkerInfo
from jobs.records import JobState, JobStatus
from jobs.settings import Settings
from jobs.storage import Store
from producer.results import result_lines, stored_spec
from producer.submission import Order, Submission, submit


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
        return submit(order, self.store, self.ledger, celery_app(self.settings), self.settings)

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

    def results(self, job_id: str, *, partial: bool = False) -> Iterator[bytes]:
        """Output lines in the order of the input; see `producer.results.result_lines`."""
        return result_lines(self.store, stored_spec(self.store, job_id), partial=partial)

    def cancel(self, job_id: str) -> JobState:
        """Call the job off; its state afterwards."""
        return self.ledger.cancel(job_id)

    def jobs(self, limit: int = 50) -> list[JobStatus]:
        """The latest jobs, newest first."""
        return self.ledger.jobs(limit)

    def workers(self) -> list[WorkerInfo]:
        """The workers that live."""
        return self.ledger.workers()

    def close(self) -> None:
        """Give the connections back."""
        self.ledger.close()
