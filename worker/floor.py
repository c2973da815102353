"""Who may generate in a worker at once: any number of shards together, or one whose lines are tried apart.

Lines that are tried apart may kill the worker, and of two that died together neither could be blamed. Owns
that order; whoever waits says when to give up.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: How often whoever waits looks whether it still may.
_LOOK_SECONDS = 0.1


class Floor:
    """Safe to use from many threads. Who wants it alone goes before who would share it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._sharing = 0
        self._alone = False
        self._waiting = 0

    @contextmanager
    def shared(self, check: Callable[[], None]) -> Iterator[None]:
        """With others. `check` is called while waiting, and raises to give up."""
        with self._changed:
            self._wait(lambda: not self._alone and not self._waiting, check)
            self._sharing += 1
        try:
            yield
        finally:
            with self._changed:
                self._sharing -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self, check: Callable[[], None]) -> Iterator[None]:
        """With nobody else."""
        with self._changed:
            self._waiting += 1
            try:
                self._wait(lambda: not self._alone and not self._sharing, check)
                self._alone = True
            finally:
                self._waiting -= 1
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()

    def _wait(self, free: Callable[[], bool], check: Callable[[], None]) -> None:
        while not self._changed.wait_for(free, _LOOK_SECONDS):
            check()
