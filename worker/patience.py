"""Waiting for Redis and the store to come back: a worker outlives both.

Owns how long to wait between tries. Whoever waits says when to give up; nothing is swallowed.
"""

import time
from collections.abc import Callable
from typing import TypeVar

import structlog
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

from jobs.errors import LedgerError, MissingObjectError, StoreError
from worker.metrics import Metrics

T = TypeVar("T")
log = structlog.get_logger(__name__)

_WAIT = wait_random_exponential(multiplier=0.2, max=5.0)


def patiently(
    action: Callable[[], T],
    *,
    check: Callable[[], None],
    metrics: Metrics,
    report: Callable[[str], None] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Repeat `action` while Redis or the store fails; what it raises otherwise is raised.

    `check` is called before each wait and raises to give up; `report` is told what is wrong with the store.
    """

    def before_sleep(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        log.warning("waiting for a service", reason=str(error), tries=state.attempt_number)
        metrics.service_retried("store" if isinstance(error, StoreError) else "ledger")
        check()
        if report is not None and isinstance(error, StoreError):
            report(str(error))

    retrying = Retrying(
        retry=retry_if_exception(_passing), wait=_WAIT, before_sleep=before_sleep, sleep=sleep, reraise=True
    )
    return retrying(action)


def _passing(error: BaseException) -> bool:
    """Whether an error may go by: a service that is away, but not an object that does not exist."""
    return isinstance(error, LedgerError | StoreError) and not isinstance(error, MissingObjectError)
