"""The leases that a worker holds, renewed until each is given up.

Owns the renewing thread, and says of each lease whether it was lost or its job called off. Takes no decision.
"""

import threading
from dataclasses import dataclass, field

import structlog

from jobs.errors import LedgerError
from jobs.ledger import Claim, Ledger

log = structlog.get_logger(__name__)

#: A cancelled job's lines stop within so many seconds and a step though no word of it comes.
_NOTICE_SECONDS = 1.0


@dataclass(slots=True, eq=False)
class HeldLease:
    """A claim as it stands: `lost` and `outcome` are set by the renewing thread."""

    claim: Claim
    lost: threading.Event = field(default_factory=threading.Event)
    #: Empty while the job is wanted, else the state it is to end in.
    outcome: str = ""
    #: Device time of lines that are not checkpointed yet, set by whoever generates them.
    unkept_seconds: float = 0.0

    @property
    def called_off(self) -> bool:
        """Whether nothing more is to be generated."""
        return bool(self.outcome)


class LeaseKeeper:
    """Renews every held lease each second, or four times in its length, and when it is told to."""

    def __init__(self, ledger: Ledger, lease_seconds: float) -> None:
        self._ledger = ledger
        self._seconds = lease_seconds
        self._held: set[HeldLease] = set()
        self._lock = threading.Lock()
        #: Set to renew now instead of when it is time.
        self._wanted = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="leases", daemon=True)

    def start(self) -> None:
        """Begin renewing."""
        self._thread.start()

    def close(self) -> None:
        """Stop renewing; what is still held runs out."""
        self._ended = True
        self._wanted.set()
        self._thread.join()

    def renew_now(self) -> None:
        """A job may have been called off."""
        self._wanted.set()

    @property
    def held(self) -> int:
        """Shards in hand."""
        return len(self._held)

    def hold(self, claim: Claim) -> HeldLease:
        """Renew from now on."""
        lease = HeldLease(claim, outcome=claim.outcome)
        with self._lock:
            self._held.add(lease)
        return lease

    def give_up(self, lease: HeldLease) -> None:
        """Renew no more."""
        with self._lock:
            self._held.discard(lease)

    def _run(self) -> None:
        while True:
            self._wanted.wait(min(_NOTICE_SECONDS, self._seconds / 4))
            self._wanted.clear()
            if self._ended:
                return
            with self._lock:
                held = tuple(self._held)
            for lease in held:
                try:
                    self._renew(lease)
                except LedgerError as error:
                    log.warning("leases not renewed", reason=str(error), held=len(held))
                    break  # the others would fail alike; the next round is soon

    def _renew(self, lease: HeldLease) -> None:
        outcome = self._ledger.renew(lease.claim, self._seconds, lease.unkept_seconds)
        if outcome is None:
            log.warning("lease lost", job=lease.claim.ref.job, shard=lease.claim.ref.shard)
            lease.lost.set()
            self.give_up(lease)
        else:
            lease.outcome = outcome
