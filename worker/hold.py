"""A claimed shard in the hands of a worker: what may still be done with it, and waiting in its name.

Owns the question whether the claim still stands. Decides nothing about lines or parts.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from jobs.errors import LeaseLostError, LedgerError
from jobs.ledger import Claim
from worker.leases import HeldLease
from worker.patience import patiently
from worker.station import Station

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Hold:
    """A claim, its lease, and the station that holds it."""

    station: Station
    claim: Claim
    lease: HeldLease

    def check_lease(self) -> None:
        """`LeaseLostError` once the shard is another's."""
        if self.lease.lost.is_set():
            raise LeaseLostError(f"shard {self.claim.ref} was taken over")

    def check(self) -> None:
        """The same, and `HandedBackError` once the worker gives up what it holds."""
        self.check_lease()
        self.station.check()

    def confirm(self) -> None:
        """Ask the ledger; `LeaseLostError` if the shard is another's by now.

        A worker may have slept since its claim: what it read of the shard meanwhile holds only after this.
        """
        seconds = self.station.settings.lease_seconds
        outcome = self.patiently(
            partial(self.station.ledger.renew, self.claim, seconds, self.lease.unkept_seconds)
        )
        if outcome is None:
            self.lease.lost.set()
            self.check_lease()
        else:
            self.lease.outcome = outcome

    def note(self, reason: str) -> None:
        """Tell people what holds the job up."""
        with contextlib.suppress(LedgerError):  # what matters waits for Redis elsewhere
            self.station.ledger.note(self.claim.ref.job, reason)

    def patiently(self, action: Callable[[], T]) -> T:
        """Repeat until the services serve, as long as the shard is ours and we live."""
        return patiently(
            action, check=self.check, report=self.note, sleep=self.station.wait, metrics=self.station.metrics
        )
