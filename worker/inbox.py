"""What an engine is asked, read in a thread of its own, so that the engine never keeps its worker waiting.

Owns that thread and the order of messages. It ends with the connection.
"""

import queue
import socket
import threading

from worker.protocol import ToEngine, receive_for_engine


class Inbox:
    """The messages that wait for the engine's next step."""

    def __init__(self, connection: socket.socket) -> None:
        self._stream = connection.makefile("rb")
        self._waiting: queue.SimpleQueue[list[ToEngine] | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="inbox", daemon=True).start()

    def take(self, *, block: bool) -> list[ToEngine] | None:
        """The next messages; none if there are none and it may not block; None when the worker is gone."""
        try:
            return self._waiting.get(block=block)
        except queue.Empty:
            return []

    def _read(self) -> None:
        while (messages := receive_for_engine(self._stream)) is not None:
            self._waiting.put(messages)
        self._waiting.put(None)
