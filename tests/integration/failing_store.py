"""A store that is full for some keys: what does a submission or a retry leave behind?"""

from contextlib import AbstractContextManager

from jobs.errors import StoreError
from jobs.storage import Sink, Store


class FailingStore(Store):
    """A store that breaks when a key with this in it is written."""

    broken = ""

    def put(self, key: str, data: bytes) -> None:
        self._break(key)
        super().put(key, data)

    def writer(self, key: str) -> AbstractContextManager[Sink]:
        self._break(key)
        return super().writer(key)

    def _break(self, key: str) -> None:
        if self.broken in key:
            raise StoreError("the disk is full")
