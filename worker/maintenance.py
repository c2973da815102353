"""What a worker does for the fleet beside its own shards: heartbeat, reconciler, jobs left to finalize.

Owns the loop and its pace. Every step is one atomic, repeatable script, so that any number of workers may run
it; a lost hint or an expired lease costs at most one round.
"""

import threading
import time
from itertools import groupby
from operator import itemgetter

import structlog
from celery import Celery

from jobs.broker import publish
from jobs.errors import LedgerError, StoreError
from jobs.ledger import WorkerInfo
from worker.manifest import FINALIZE_SECONDS, finalize
from worker.shard import Station

log = structlog.get_logger(__name__)


class Maintenance:
    """The worker's maintenance thread."""

    def __init__(self, station: Station, app: Celery) -> None:
        self._station = station
        self._app = app
        self._started_at = time.time()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="maintenance", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """Stop, and take the worker from the list of the living."""
        self._ended.set()
        self._thread.join()
        try:
            self._station.ledger.withdraw(self._station.worker)
        except LedgerError as error:
            log.warning("worker not withdrawn: it fades from the list by itself", reason=str(error))

    def _run(self) -> None:
        settings = self._station.settings
        pause = 0.0
        while not self._ended.wait(pause):
            pause = settings.reconcile_seconds
            try:
                self._announce()
                self._reconcile()
                self._finalize()
                self._station.dispatch()
            except (LedgerError, StoreError) as error:
                log.warning("maintenance waits", reason=str(error))
                # Redis may have been away for longer than a lease: let the living renew theirs first.
                pause = max(pause, settings.lease_seconds / 2)

    def _announce(self) -> None:
        info = WorkerInfo(
            name=self._station.worker,
            model=self._station.model.name,
            group=str(self._station.group),
            started_at=self._started_at,
            seen_at=time.time(),
        )
        self._station.ledger.announce(info)

    def _reconcile(self) -> None:
        lost = self._station.ledger.reconcile(2 * self._station.settings.reconcile_seconds)
        for model, hints in groupby(sorted(lost), key=itemgetter(0)):
            refs = [ref for _, ref in hints]
            log.info("hints published again", model=model, shards=len(refs))
            publish(self._app, model, refs)

    def _finalize(self) -> None:
        station = self._station
        for job_id in station.ledger.take_finalizing(FINALIZE_SECONDS):
            try:
                finalize(station.store, station.ledger, job_id, station.model.versions)
            except (
                StoreError
            ) as error:  # its lease runs out and it is tried again; the other jobs need not wait
                log.warning("job not finalized", job=job_id, reason=str(error))
                station.ledger.note(job_id, str(error))
