"""How fast a job goes, and when it will be done, seen from outside. Owns that estimate alone."""

import time
from collections import deque
from typing import NamedTuple

from jobs.records import JobStatus

#: What "now" means for a rate: long enough to have lines in it, short enough to tell when something changes.
WINDOW_SECONDS = 60.0


class Rates(NamedTuple):
    """None where it is not known (yet)."""

    #: Generated, over the last minute.
    tokens_per_second: float | None
    #: Until the job's last line, if it goes on so.
    seconds_left: float | None


class _Sample(NamedTuple):
    at: float
    lines: int
    tokens: int


class Pace:
    """Watches one job's statuses over a sliding window."""

    def __init__(self) -> None:
        self._first: _Sample | None = None
        self._window: deque[_Sample] = deque()

    def seen(self, status: JobStatus) -> Rates:
        """Take the latest status into account."""
        if status.started_at is None:
            return Rates(None, None)
        now = _Sample(time.monotonic(), status.done_lines, status.completion_tokens)
        self._first = self._first or now
        self._window.append(now)
        while len(self._window) > 2 and self._window[1].at <= now.at - WINDOW_SECONDS:
            self._window.popleft()
        then = self._window[0]
        if now.at <= then.at:
            return Rates(None, None)
        # Where no line ended within the window, long lines are to be expected: go by all that was seen.
        since = then if now.lines > then.lines else self._first
        return Rates(
            max(0, now.tokens - then.tokens) / (now.at - then.at), _left(since, now, status.spec.lines)
        )


def _left(since: _Sample, now: _Sample, lines: int) -> float | None:
    if now.lines <= since.lines or now.lines >= lines:
        return None
    return (lines - now.lines) * (now.at - since.at) / (now.lines - since.lines)
