"""Celery's Redis transport, but for messages that are none of ours: those are logged and dropped, unopened.

Whoever can write to Redis can put anything into a queue. Celery's own transport ends the worker over what is
not JSON or lacks a field, and over some of it again after each restart, since it goes back to the queue. Owns
what a message may look like. Never executes, unpickles or answers anything.
"""

import base64
from queue import Empty
from typing import Any

import msgspec
import structlog
from kombu.transport import redis as kombu_redis

from jobs.errors import HintError, JobsError
from jobs.records import ShardRef, checked_job_id

log = structlog.get_logger(__name__)

TASK = "longhaul.shard"
_MOST_SHARDS = 2**53


class _Hint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The arguments of the one task."""

    job: str
    shard: int


class _Delivery(msgspec.Struct, frozen=True):
    exchange: str
    routing_key: str


class _Properties(msgspec.Struct, frozen=True):
    delivery_tag: str
    delivery_info: _Delivery
    body_encoding: str


class _Headers(msgspec.Struct, frozen=True):
    """Those that make Celery do something; the others are names for logs."""

    task: str
    id: str
    eta: None = None
    expires: None = None
    group: None = None
    timelimit: list[None] | None = None


class _Message(msgspec.Struct, frozen=True):
    """Celery's message protocol 2: https://docs.celeryq.dev/en/stable/internals/protocol.html."""

    body: str
    content_type: str = msgspec.field(name="content-type")
    headers: _Headers
    properties: _Properties


#: Positional arguments, the hint, and what is to follow the task.
_Body = tuple[list[None], _Hint, dict[str, None]]


def read_hint(message: object) -> ShardRef:
    """The shard that a message of the queue names; `HintError` says why it names none."""
    try:
        known = msgspec.convert(message, _Message)
        if (known.content_type, known.headers.task) != ("application/json", TASK):
            raise HintError(f"{known.headers.task!r} as {known.content_type!r}")
        if known.properties.body_encoding != "base64":
            raise HintError(f"body encoding {known.properties.body_encoding!r}")
        _, hint, _ = msgspec.json.decode(base64.b64decode(known.body, validate=True), type=_Body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:  # base64's errors are ValueErrors
        raise HintError(str(error)) from error
    if not 0 <= hint.shard < _MOST_SHARDS:
        raise HintError(f"shard {hint.shard}")
    return ShardRef(checked_job_id(hint.job), hint.shard)


class QoS(kombu_redis.QoS):
    """Messages that were taken and are not done, for as long as they are not."""

    def restore_by_tag(self, tag: Any, client: Any = None, leftmost: bool = False) -> None:
        """Put a message back into its queue, where it is one."""
        try:
            super().restore_by_tag(tag, client, leftmost)  # type: ignore[no-untyped-call]
        except (ValueError, TypeError, RecursionError) as error:
            log.warning("message dropped: it can not be given back", reason=type(error).__name__)
            with self.channel.conn_or_acquire(client) as connection:
                self._remove_from_indices(tag, connection.pipeline()).execute()  # type: ignore[no-untyped-call]


class Channel(kombu_redis.Channel):
    """Takes messages from the lists of Redis."""

    QoS = QoS

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[no-untyped-call]
        except (ValueError, RecursionError) as error:
            log.warning("message dropped: it is not JSON", reason=type(error).__name__)
            raise Empty from error


class Transport(kombu_redis.Transport):
    """For `broker_transport`."""

    Channel = Channel

    def _deliver(self, message: object, queue: str) -> None:
        try:
            read_hint(message)
        except JobsError as error:
            log.warning("message dropped: it is no hint", queue=queue, reason=str(error)[:200])
        else:
            super()._deliver(message, queue)  # type: ignore[no-untyped-call]
