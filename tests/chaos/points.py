"""Where a worker can die: before and after each call to the ledger, the store and the broker.

Owns the list, taken from the classes themselves, so that a new method is on it by itself; which of them no
worker calls, each with the reason; and what makes a worker come to those that plain work does not reach.
"""

from collections.abc import Iterator, Sequence

from jobs.ledger import Ledger
from jobs.storage import Store
from tests.chaos.injected.chaos_hooks import public_methods

#: Not called by a worker, or only within another call. Reviewed whenever a line is added here.
NOT_A_WORKERS = {
    "ledger.register": "a producer makes jobs",
    "ledger.jobs": "a producer lists jobs",
    "ledger.cancel": "a producer calls off what it wants no more; a worker's way is call_off",
    "ledger.workers": "a producer looks for workers",
    "ledger.restore": "a rebuild makes jobs known again",
    "store.stream": "a producer reads results",
    "store.list": "a rebuild looks for parts",
    "store.folders": "a rebuild looks for jobs",
    "store.delete": "within the probe",
}

#: Calls that plain work does not reach, and what a test has to do so that it comes to them.
APART = {
    "ledger.release": "drain",
    "ledger.withdraw": "drain",
    "ledger.close": "drain",
    "ledger.suspect": "deaths of workers before a line is finished",
    "ledger.note": "a store that fails",
    "ledger.call_off": "objects of a job that are not there",
    "ledger.keep_finalizing": "a slow manifest",
}

#: Calls that a process makes once, before it begins.
STARTING = ("ledger.ping", "store.probe")


def calls() -> list[str]:
    """Every public call to a service, as `ledger.commit`."""
    ledger = [f"ledger.{name}" for name in public_methods(Ledger)]
    store = [f"store.{name}" for name in public_methods(Store)]
    return [*ledger, *store, "broker.publish"]


def worked() -> list[str]:
    """Calls that a worker comes to while it does jobs and nothing is wrong."""
    return [call for call in calls() if call not in NOT_A_WORKERS and call not in APART]


def points(names: Sequence[str], action: str, whens: Sequence[str] = ("before", "after")) -> Iterator[str]:
    """A point before and after each of these calls, at the first one that a process makes."""
    for name in names:
        for when in whens:
            yield f"{name}:{when}:1:{action}"
