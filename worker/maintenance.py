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
from jobs.ledger import Ledger, WorkerInfo
from jobs.settings import Settings
from jobs.storage import Store
from worker.manifest import FINALIZE_SECONDS, finalize

log = structlog.get_logger(__name__)


class Maintenance:
    """The worker's maintenance thread."""

    def __init__(
        self,
        *,
        info: WorkerInfo,
        ledger: Ledger,
        store: Store,
        app: Celery,
        settings: Settings,
        versions: dict[str, str],
        dispatch: Callable[[], None],
    ) -> None:
        self._info = info
        self._ledger = ledger
        self._store = store
        self._app = app
        self._settings = settings
        self._versions = versions
        self._dispatch = dispatch
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
            self._ledger.withdraw(self._info.name)
        except LedgerError as error:
            log.warning("worker not withdrawn: it fades from the list by itself", reason=str(error))

    def _run(self) -> None:
        pause = 0.0
        while not self._ended.wait(pause):
            pause = self._settings.reconcile_seconds
            try:
                self._round()
            except (LedgerError, StoreError) as error:
                log.warning("maintenance waits", reason=str(error))
                # Redis may have been away for longer than a lease: let the living renew theirs first.
                pause = max(pause, self._settings.lease_seconds / 2)

    def _round(self) -> None:
        now = time.time()
        self._ledger.announce(
            WorkerInfo(
                name=self._info.name,
                model=self._info.model,
                group=self._info.group,
                started_at=self._info.started_at,
                seen_at=now,
            )
        )
        lost = sorted(self._ledger.reconcile(patience_seconds=2 * self._settings.reconcile_seconds))
        for model, hints in groupby(lost, key=itemgetter(0)):
            refs = [ref for _, ref in hints]
            log.info("hints published again", model=model, shards=len(refs))
            publish(self._app, model, refs)
        for job_id in self._ledger.take_finalizing(FINALIZE_SECONDS):
            finalize(self._store, self._ledger, job_id, self._versions)
        self._dispatch()
