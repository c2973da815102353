"""The consumer's sign of life: Celery's loop beats it, and who watches it finds a loop that stands still.

Owns the beat and its age. (A consumer that lost its connection without noticing takes nothing any more and
says nothing: celery/celery #8091 and others.)
"""

import time
from typing import Any, ClassVar

from celery import Celery, bootsteps

_BEAT_SECONDS = 1.0


class Pulse:
    """When the consumer's loop last went round."""

    def __init__(self) -> None:
        self._beaten_at = time.monotonic()

    def beat(self) -> None:
        """The loop goes round."""
        self._beaten_at = time.monotonic()

    @property
    def age(self) -> float:
        """Seconds since the last beat."""
        return time.monotonic() - self._beaten_at

    def install(self, app: Celery) -> None:
        """Have the consumers of the application beat."""
        beat = self.beat

        class Beat(bootsteps.StartStopStep):  # type: ignore[misc]
            requires: ClassVar = {"celery.worker.consumer.tasks:Tasks"}

            def start(self, consumer: Any) -> None:
                beat()
                consumer.timer.call_repeatedly(_BEAT_SECONDS, beat)

        app.steps["consumer"].add(Beat)
