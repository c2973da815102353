"""When a job must have ended, as a user writes it: how long from now, or a moment.

Owns that spelling. What happens at a deadline is the ledger's and the workers' affair.
"""

import re
import time
from datetime import UTC, datetime

from producer.errors import OptionError

_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", re.ASCII)
_SECONDS = (86400, 3600, 60, 1)
_LAST = datetime(9999, 12, 31, tzinfo=UTC).timestamp()
_ADVICE = "give a duration such as 90m, 2h or 1d12h, or a time such as 2026-01-31T18:00"


def moment_of(text: str) -> float:
    """Unix time of a duration from now, or of an ISO 8601 time, which is local unless it says otherwise."""
    try:
        duration = _DURATION.fullmatch(text)
        if duration is not None and text:
            seconds = sum(
                int(count or 0) * unit for count, unit in zip(duration.groups(), _SECONDS, strict=True)
            )
            return datetime.fromtimestamp(time.time() + seconds, UTC).timestamp()
        return datetime.fromisoformat(text).astimezone().timestamp()
    except (ValueError, OverflowError, OSError) as error:  # no date, or none that a calendar has
        raise OptionError(f"the deadline {text[:40]!r} can not be read", _ADVICE) from error


def check_deadline(deadline: float | None) -> None:
    """`OptionError` for one that has passed, and for one that no calendar has."""
    if deadline is not None and not time.time() < deadline < _LAST:
        raise OptionError("the deadline has passed", "give a time that is still to come")
