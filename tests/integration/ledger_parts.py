"""What tests of the ledger have in common: jobs, receipts, claims."""

from jobs.ledger import Claim, Ledger
from jobs.records import JobSpec, Priority, Receipt, ShardRef

MODEL = "small"


def spec(job: str, shards: int, priority: Priority = Priority.NORMAL) -> JobSpec:
    return JobSpec(
        id=job,
        model=MODEL,
        created_at=1.0,
        source="x.jsonl",
        priority=priority,
        lines=shards * 2,
        rejected=0,
        shards=shards,
        input_bytes=1,
        input_sha256="0",
    )


def receipt(shard: int, succeeded: int = 2, failed: int = 0) -> Receipt:
    return Receipt(
        shard=shard,
        lines=succeeded + failed,
        succeeded=succeeded,
        failed=failed,
        sha256="",
        bytes=1,
        prompt_tokens=10,
        completion_tokens=5,
        device_seconds=1.5,
        worker="w",
        epoch=1,
    )


def claimed(ledger: Ledger, ref: ShardRef, owner: str = "", seconds: float = 60) -> Claim:
    answer = ledger.claim(ref, owner or str(ref), seconds)
    assert isinstance(answer, Claim), answer
    return answer
