"""What a worker does for the fleet beside its own shards: heartbeat, reconciler, jobs left to finalize.

Owns the loop and its pace. Every step is one atomic, repeatable script, so that any number of workers may run
it; a lost hint or an expired lease costs at most one round.
"""

import threading
import time
from collections.abc import Callable
from itertools import groupby
from operator import itemgetter

import structlog
from celery import Celery

from jobs.broker import publish
from jobs.errors import LedgerError, StoreError
from jobs.ledger import WorkerInfo
from worker.manifest import FINALIZE_SECONDS, finalize
from worker.pulse import Pulse
from worker.station import Station

log = structlog.get_logger(__name__)

#: A consumer that stood still for so long, while Redis answers, does not move again by itself.
_STUCK_SECONDS = 120.0


class Maintenance:
    """The worker's maintenance thread."""

    def __init__(self, station: Station, app: Celery, pulse: Pulse, stuck: Callable[[], None]) -> None:
        """`stuck` is called when the consumer stands still and the process has to be replaced."""
        self._station = station
        self._app = app
        self._pulse = pulse
        self._stuck = stuck
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
                self._survey()
            except (LedgerError, StoreError) as error:
                log.warning("maintenance waits", reason=str(error))
                # Redis may have been away for longer than a lease: let the living renew theirs first.
                pause = max(pause, settings.lease_seconds / 2)

    def _announce(self) -> None:
        """A heartbeat is as old as the last move of the consumer, or of the engine where it has work."""
        station = self._station
        now = station.ledger.now()
        if self._pulse.age > _STUCK_SECONDS and not station.hand_back.is_set():
            log.error("consumer stands still: the process is replaced", seconds=round(self._pulse.age))
            self._stuck()
        info = WorkerInfo(
            name=station.worker,
            model=station.model.name,
            group=str(station.group),
            started_at=self._started_at,
            seen_at=now - max(self._pulse.age, station.model.engine.idle_seconds),
        )
        station.ledger.announce(info)

    def _reconcile(self) -> None:
        settings = self._station.settings
        seconds = settings.reconcile_seconds
        lost = self._station.ledger.reconcile(
            2 * seconds,
            turn_seconds=seconds / 2,
            lease_seconds=settings.lease_seconds,
            finalize_seconds=FINALIZE_SECONDS,
        )
        for model, hints in groupby(sorted(lost), key=itemgetter(0)):
            refs = [ref for _, ref in hints]
            log.info("hints published again", model=model, shards=len(refs))
            publish(self._app, model, refs)

    def _finalize(self) -> None:
        station = self._station
        for job_id in station.ledger.take_finalizing(FINALIZE_SECONDS):
            try:
                finalize(station.store, station.ledger, job_id, station.model.versions)
            except StoreError as error:
                # Its lease runs out and it is tried again; the other jobs need not wait.
                log.warning("job not finalized", job=job_id, reason=str(error))
                station.ledger.note(job_id, str(error))

    def _survey(self) -> None:
        model = self._station.model.name
        jobs, lines = self._station.ledger.remaining(model)
        self._station.metrics.backlog(model, jobs=jobs, lines=lines)
