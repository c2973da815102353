"""Messages of the queue → shards: what a hint may be, and what becomes of a message that is none.

Owns the one task. A message is data from whoever can write to Redis: what is not `{job, shard}` is logged and
dropped, never executed and never a reason to stop.
"""

from typing import Any

import structlog
from celery import Celery

from jobs.broker import TASK
from jobs.errors import JobsError
from jobs.records import ShardRef, checked_job_id
from worker.shard import work
from worker.station import Station

log = structlog.get_logger(__name__)

_MOST_SHARDS = 2**53


def take_hints(app: Celery, station: Station) -> None:
    """Have the application do shards when it gets hints."""

    @app.task(name=TASK)  # type: ignore[untyped-decorator]
    def shard(*arguments: Any, **fields: Any) -> None:
        hint = None if arguments else read_hint(fields)
        if hint is None:
            log.warning("message dropped: it is no hint", fields=sorted(map(str, fields))[:5])
        else:
            work(station, hint)


def read_hint(fields: dict[str, Any]) -> ShardRef | None:
    """The shard that a message names; None where it is not exactly a job's id and a number."""
    job, number = fields.get("job"), fields.get("shard")
    if fields.keys() != {"job", "shard"} or not isinstance(job, str) or type(number) is not int:
        return None
    try:
        checked_job_id(job)
    except JobsError:
        return None
    return ShardRef(job, number) if 0 <= number < _MOST_SHARDS else None
