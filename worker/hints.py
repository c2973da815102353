"""Messages of the queue → shards. Owns the one task; what a message may be is said in `jobs.transport`."""

from celery import Celery

from jobs.records import ShardRef
from jobs.transport import TASK
from worker.shard import work
from worker.station import Station


def take_hints(app: Celery, station: Station) -> None:
    """Have the application do shards when it gets hints."""

    @app.task(name=TASK)  # type: ignore[untyped-decorator]
    def shard(job: str, shard: int) -> None:
        work(station, ShardRef(job, shard))
