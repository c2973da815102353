"""A part: the result lines of one shard, in input order, as one object; and its receipt.

Owns how lines become bytes and bytes become counts. Never touches the store.
"""

import hashlib
from collections.abc import Mapping

from jobs import dialogue
from jobs.records import Receipt, Shard


def compose(shard: Shard, lines: Mapping[int, bytes]) -> bytes:
    """The part's bytes. `KeyError` if a line of the shard is missing: a part is whole or it is not."""
    numbers = range(shard.first_line, shard.first_line + shard.lines)
    return b"".join(lines[number] + b"\n" for number in numbers)


def sha256(data: bytes) -> str:
    """In hexadecimal digits, as receipts give it."""
    return hashlib.sha256(data).hexdigest()


def receipt(
    number: int,
    data: bytes,
    *,
    epoch: int,
    device_seconds: float = 0.0,
    wasted_device_seconds: float = 0.0,
    worker: str | None = None,
    group: str | None = None,
    model_hash: str | None = None,
) -> Receipt:
    """What the part of shard `number` holds, counted from its bytes; its cost and its maker as told."""
    outcomes = [dialogue.outcome(line) for line in data.splitlines()]
    succeeded = sum(outcome.succeeded for outcome in outcomes)
    return Receipt(
        shard=number,
        lines=len(outcomes),
        succeeded=succeeded,
        failed=len(outcomes) - succeeded,
        sha256=sha256(data),
        bytes=len(data),
        prompt_tokens=sum(outcome.prompt_tokens for outcome in outcomes),
        completion_tokens=sum(outcome.completion_tokens for outcome in outcomes),
        device_seconds=round(device_seconds, 6),
        wasted_device_seconds=round(wasted_device_seconds, 6),
        worker=worker,
        group=group,
        model_hash=model_hash,
        epoch=epoch,
    )
