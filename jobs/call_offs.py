"""Word of jobs that are called off while workers have lines of theirs: a channel of Redis.

Owns the channel and the thread that listens to it; the ledger's scripts publish there. Word is a hint, as a
message is: it may be lost or refused, and whoever gets it asks the ledger what is so.
"""

import threading
from collections.abc import Callable

import structlog
from redis.exceptions import NoPermissionError

from jobs.errors import LedgerError
from jobs.redis_client import RedisClient
from jobs.settings import Settings

log = structlog.get_logger(__name__)

#: How soon the thread notices that it is to end.
_TICK_SECONDS = 0.25
#: Between attempts at a Redis that is away.
_RETRY_SECONDS = 1.0


def channel(settings: Settings) -> str:
    """The channel's name, under the fleet's prefix as all keys are."""
    return f"{settings.redis_prefix}:called_off"


class CallOffs:
    """Calls `heard`, in a thread of its own, when any job was called off that workers were at."""

    def __init__(self, settings: Settings, heard: Callable[[], None]) -> None:
        self._client = RedisClient(settings)
        self._channel = channel(settings)
        self._heard = heard
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="call-offs", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def close(self) -> None:
        """Listen no more."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        with self._client.redis.pubsub(ignore_subscribe_messages=True) as subscription:  # type: ignore[no-untyped-call]
            while not self._ended.is_set():
                try:
                    with self._client.translated():
                        if not subscription.subscribed:
                            subscription.subscribe(self._channel)
                        message = subscription.get_message(timeout=_TICK_SECONDS)
                except LedgerError as error:
                    if isinstance(error.__cause__, NoPermissionError):
                        log.warning(
                            "no word of cancelled jobs: leases tell a second later", reason=str(error)
                        )
                        return
                    self._ended.wait(_RETRY_SECONDS)
                else:
                    if message is not None:
                        self._heard()
