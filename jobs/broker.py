"""The Celery application and its hardened settings; the name of the one task and of its queues.

Owns how a hint reaches a worker. A message is `{job, shard}` and may be lost, late or doubled: the ledger
decides what is done (Redis as a broker can lose a message between its BRPOP and its unacked entry, and
redelivers one whose visibility timeout ends). Never carries results.
"""

from collections.abc import Iterable

import redis
from celery import Celery
from kombu.exceptions import OperationalError

from jobs.errors import LedgerError
from jobs.records import ShardRef, checked_model_name
from jobs.redis_client import tls_options
from jobs.settings import Settings
from jobs.transport import TASK, Transport

_CONNECT_SECONDS = 3


def queue_name(model: str) -> str:
    """The queue of one model's shards; with the key prefix it is `jobs.ledger.queue_key`."""
    return f"queue:{checked_model_name(model)}"


def celery_app(settings: Settings) -> Celery:
    """The application, for publishing and for a worker; connects to nothing yet."""
    tls = tls_options(settings)
    app = Celery("longhaul", broker=settings.redis_url.get_secret_value(), set_as_current=False)
    app.conf.update(
        broker_transport=Transport,
        # JSON only: a message is data, never code.
        task_serializer="json",
        accept_content=["json"],
        result_accept_content=["json"],
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        # One message per free slot, given back to the queue if the worker dies before it is done.
        task_acks_late=True,
        task_acks_on_failure_or_timeout=True,
        worker_prefetch_multiplier=1,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        # Nobody commands a worker but signals and the ledger: one channel less for strangers.
        worker_enable_remote_control=False,
        broker_use_ssl=tls or None,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=_CONNECT_SECONDS,
        task_publish_retry_policy={"max_retries": 2, "interval_start": 0.1, "interval_step": 0.4},
        broker_transport_options={
            "global_keyprefix": f"{settings.redis_prefix}:",
            "visibility_timeout": 3600,
            "socket_keepalive": True,
            "socket_connect_timeout": _CONNECT_SECONDS,
            "socket_timeout": 30,
            "health_check_interval": 15,
            "max_retries": 2,
        },
        # Our own signal handling and logs; nothing of Celery's on standard output.
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        task_create_missing_queues=True,
        task_default_queue="queue:default",
    )
    return app


def publish(app: Celery, model: str, refs: Iterable[ShardRef]) -> None:
    """Send hints; `LedgerError` when Redis is away (the reconciler sends them again)."""
    try:
        for ref in refs:
            app.send_task(TASK, kwargs={"job": ref.job, "shard": ref.shard}, queue=queue_name(model))
    except (OperationalError, redis.RedisError, OSError) as error:
        raise LedgerError(f"Redis does not take messages: {error}") from error
