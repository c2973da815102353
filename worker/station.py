"""What all shards of a worker work with, and the word that they are to be handed back.

Owns nothing itself: it is the one place where the parts of a worker process are named together.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from jobs.ledger import Ledger
from jobs.settings import Settings
from jobs.storage import Store
from worker.errors import HandedBackError
from worker.floor import Floor
from worker.generation import Model
from worker.groups import DeviceGroup
from worker.leases import LeaseKeeper
from worker.metrics import Metrics


class Odometer:
    """Lines and tokens of a worker since its start. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.lines = self.tokens = 0

    def add(self, lines: int, tokens: int) -> None:
        """So many lines are finished, with so many generated tokens."""
        with self._lock:
            self.lines += lines
            self.tokens += tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Station:
    """One worker process, as its shards see it."""

    worker: str
    group: DeviceGroup
    settings: Settings
    store: Store
    ledger: Ledger
    leases: LeaseKeeper
    model: Model
    metrics: Metrics
    #: Opens and publishes the next shards of the model's queue.
    dispatch: Callable[[], None]
    floor: Floor = field(default_factory=Floor)
    odometer: Odometer = field(default_factory=Odometer)
    #: Set when shards are to be handed back instead of finished.
    hand_back: threading.Event = field(default_factory=threading.Event)

    def wait(self, seconds: float) -> None:
        """Sleep, but not past the word to hand back."""
        self.hand_back.wait(seconds)

    def check(self) -> None:
        """`HandedBackError` once the worker gives up what it holds."""
        if self.hand_back.is_set():
            raise HandedBackError("the worker is draining")
