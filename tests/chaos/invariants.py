"""What must hold after any job, whatever was done to the fleet that did it.

Owns the judgement. Reads the store, the ledger and what engines and workers wrote down of themselves; changes
nothing. Each check raises AssertionError with the fleet's story.
"""

import base64
import hashlib
import json
import re
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jobs.dialogue import CANCELLED, outcome
from jobs.records import JobKeys, JobState
from jobs.storage import Store
from tests.chaos.events import Event, LineId
from tests.chaos.fleet import MODEL, Fleet, Job
from tests.chaos.work import Line

#: Keys of the ledger that may stay when every job has ended.
_KEPT = {"job", "jobs", "models", "workers", "clock", "weight", "reconciler"}
#: Keys of the broker's own; what may be in them is checked apart.
_BROKER = ("_kombu", "unacked", "queue")
_PART = re.compile(r"jobs/([^/]+)/output/part-(\d+)\.jsonl")


def check(fleet: Fleet) -> None:
    """Every job as it has to be, nothing left behind, nothing done twice that was kept."""
    for job in fleet.jobs:
        check_job(fleet, job)
    check_nothing_left(fleet)
    check_work(fleet)
    check_exits(fleet)


def ensure(fleet: Fleet, holds: bool, what: str) -> None:
    """The fleet's story where something does not hold."""
    if not holds:
        raise AssertionError(f"{what}\n{fleet.story()}")


# Results


def check_job(fleet: Fleet, job: Job, state: JobState | None = None) -> None:
    """Every line exactly once, in order, with its answer; counts and hashes as the manifest says."""
    status = fleet.client.status(job.id)
    failed = job.work.failed
    total = len(job.work.lines)
    expected = state or (JobState.COMPLETED if failed < total else JobState.FAILED)
    ensure(fleet, status.state is expected, f"{job.id} is {status.state}, not {expected}")
    output = [json.loads(line) for line in fleet.client.results(job.id)]
    ensure(fleet, len(output) == total, f"{job.id} has {len(output)} lines of output, not {total}")
    for number, (found, line) in enumerate(zip(output, job.work.lines, strict=True), start=1):
        wrong = _wrong(found, line, f"{job.id}-{number}")
        ensure(fleet, not wrong, f"{job.id} line {number}: {wrong}: {found}")
    counts = (status.succeeded, status.failed, status.checkpointed)
    ensure(fleet, counts == (total - failed, failed, 0), f"{job.id} counts {counts}")
    _check_objects(fleet, job, expected)


def check_called_off(fleet: Fleet, job: Job) -> None:
    """What is there is right, in order and counted; what is missing was not begun."""
    status = fleet.client.status(job.id)
    if status.state is JobState.COMPLETED:  # it was quicker
        check_job(fleet, job)
        return
    ensure(fleet, status.state is JobState.CANCELLED, f"{job.id} is {status.state}")
    output = [json.loads(line) for line in fleet.client.results(job.id)]
    numbers = [int(line["id"].rpartition("-")[2]) for line in output]
    ensure(fleet, numbers == sorted(set(numbers)), f"{job.id}: lines {numbers}")
    called_off = 0
    for number, found in zip(numbers, output, strict=True):
        line = job.work.lines[number - 1]
        if (found["error"] or {}).get("code") == CANCELLED:
            called_off += 1
            continue
        wrong = _wrong(found, line, f"{job.id}-{number}")
        ensure(fleet, not wrong, f"{job.id} line {number}: {wrong}: {found}")
    failed = called_off + sum(job.work.lines[number - 1].error is not None for number in numbers)
    store, keys = fleet.client.store, JobKeys(job.id)
    manifest = json.loads(store.get(keys.manifest))
    for part in manifest["parts"]:
        _check_part(fleet, store, keys, part)
    counts = (len(output) - failed, failed, len(job.work.lines) - len(output))
    totals = tuple(manifest["totals"][name] for name in ("succeeded", "failed", "not_run"))
    ensure(fleet, totals == counts, f"{job.id}: the manifest counts {totals}, not {counts}")
    ensure(fleet, store.size(keys.success) is None, f"{job.id} has _SUCCESS")
    known = (status.succeeded, status.failed)
    ensure(fleet, known == counts[:2], f"{job.id}: the ledger counts {known}, not {counts[:2]}")


def _wrong(found: dict[str, Any], line: Line, line_id: str) -> str:
    if found["id"] != line_id:
        return f"its id is not {line_id}"
    if found["custom_id"] != line.custom_id:
        return f"its custom_id is not {line.custom_id}"
    if line.error is not None:
        error = (found["error"] or {}).get("code")
        return "" if error == line.error else f"its error is {error}, not {line.error}"
    if found["error"] is not None:
        return "it failed"
    body = found["response"]["body"]
    if line.tokens is not None:
        tokens = body["usage"]["completion_tokens"]
        return "" if tokens == line.tokens else f"it has {tokens} tokens, not {line.tokens}"
    answer = body["choices"][0]["message"]["content"]
    return "" if answer == line.text else f"its answer is not {line.text!r}"


def _check_objects(fleet: Fleet, job: Job, state: JobState) -> None:
    store, keys = fleet.client.store, JobKeys(job.id)
    manifest = json.loads(store.get(keys.manifest))
    parts = manifest["parts"]
    shards = manifest["job"]["shards"]
    ensure(fleet, manifest["state"] == state, f"{job.id}: the manifest says {manifest['state']}")
    ensure(fleet, [part["shard"] for part in parts] == list(range(shards)), f"{job.id}: parts {parts}")
    for part in parts:
        _check_part(fleet, store, keys, part)
    total, failed = len(job.work.lines), job.work.failed
    totals = {name: manifest["totals"][name] for name in ("lines", "succeeded", "failed", "not_run")}
    wanted = {"lines": total, "succeeded": total - failed, "failed": failed, "not_run": 0}
    ensure(fleet, totals == wanted, f"{job.id}: the manifest counts {totals}, not {wanted}")
    for name in ("prompt_tokens", "completion_tokens"):
        summed = sum(part[name] for part in parts)
        ensure(fleet, manifest["totals"][name] == summed, f"{job.id}: {name} are not the parts' sum")
    done = store.size(keys.success)
    ensure(fleet, (done == 0) is (state is JobState.COMPLETED), f"{job.id}: _SUCCESS is {done}")
    allowed = {keys.input, keys.spec, keys.shards, keys.rejects, keys.manifest, keys.success}
    allowed |= {keys.part(shard) for shard in range(shards)} | {
        keys.receipt(shard) for shard in range(shards)
    }
    stray = set(store.list(f"{keys.root}/")) - allowed
    ensure(fleet, not stray, f"{job.id}: stray objects {stray}")


def _check_part(fleet: Fleet, store: Store, keys: JobKeys, part: dict[str, Any]) -> None:
    data = store.get(keys.part(part["shard"]))
    outcomes = [outcome(line) for line in data.splitlines()]
    succeeded = sum(each.succeeded for each in outcomes)
    found = {
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "lines": len(outcomes),
        "succeeded": succeeded,
        "failed": len(outcomes) - succeeded,
        "prompt_tokens": sum(each.prompt_tokens for each in outcomes),
        "completion_tokens": sum(each.completion_tokens for each in outcomes),
    }
    said = {name: part[name] for name in found}
    ensure(fleet, found == said, f"{keys.part(part['shard'])}: its receipt says {said}, it is {found}")


# Leftovers


def check_nothing_left(fleet: Fleet) -> None:
    """No lease, no open or waiting shard, no checkpoint; no message that would be worked on again."""
    jobs = {job.id for job in fleet.jobs}
    with fleet.services.valkey.client() as redis:

        def left() -> set[str]:
            keys = {key.decode().removeprefix(f"{fleet.prefix}:") for key in redis.keys(f"{fleet.prefix}:*")}
            queue = redis.llen(f"{fleet.prefix}:queue:{MODEL}")
            ours = {key for key in keys if not key.startswith(_BROKER) and key.split(":")[0] not in _KEPT}
            return ours | ({f"{queue} messages in the queue"} if queue else set())

        # Claims and finalizers' leases run out, and stale hints are drained, by themselves.
        fleet.until(lambda: not left(), "nothing to be left in Redis", seconds=15)
        weight = redis.get(f"{fleet.prefix}:weight:{MODEL}") or b"0"
        ensure(fleet, int(weight) == 0, f"{weight!r} is left of the jobs' weights")
        for job in jobs:
            ensure(fleet, redis.ttl(f"{fleet.prefix}:job:{job}") > 0, f"{job} will never be forgotten")
        # What a killed worker had taken comes back after its visibility timeout, as hints to ended jobs.
        unacked = [json.loads(entry) for entry in redis.hvals(f"{fleet.prefix}:unacked")]
    for entry in unacked:
        hint = json.loads(base64.b64decode(entry[0]["body"]))[1]
        ensure(fleet, hint["job"] in jobs, f"a message for an unknown job is unacknowledged: {hint}")
    taken = sum(worker.starts for worker in fleet.workers) + len(fleet.injected)
    room = taken * 2 * int(fleet.settings.get("shards_in_flight", "2"))
    ensure(fleet, len(unacked) <= room, f"{len(unacked)} messages are unacknowledged, more than {room}")


def check_exits(fleet: Fleet) -> None:
    """No worker ends by itself, but where it could not start because a service was away, which it says."""
    for worker in fleet.workers:
        # SIGTERM may come before there is anything to drain.
        expected = (0, 1, -signal.SIGKILL, -signal.SIGTERM)
        strange = [status for status in worker.exits if status not in expected]
        ensure(fleet, not strange, f"{worker.name} ended with {strange}")
        said = worker.log.read_text(errors="replace").count('"worker can not start"')
        ensure(fleet, worker.exits.count(1) <= said, f"{worker.name} ended with 1, and says {said} times why")


# Work


@dataclass(frozen=True, slots=True)
class _Claim:
    begun: float
    ended: float
    ref: str
    epoch: int
    owner: str


@dataclass(frozen=True, slots=True)
class _Write:
    """A call that keeps something: it was done between these moments."""

    begun: float
    ended: float
    owner: str = ""


def check_work(fleet: Fleet) -> None:
    """No line that was kept is asked for by a claim that begins later, or again by the same."""
    events = fleet.events.all()
    claims = list(_claims(events))
    check_fence(fleet, events, claims)
    kept, written = _kept(events), _written(events)
    answered: set[tuple[int, str]] = set()
    for event in events:
        lines = list(filter(None, map(LineId.parse, event.ids)))
        if event.name == "engine.answer":
            answers = {(event.pid, each) for each in event.ids if LineId.parse(each)}
            ensure(fleet, not answered & answers, f"answered twice by one engine: {answered & answers}")
            answered |= answers
        elif event.name == "engine.ask":
            for line in lines:
                claim = _claim_of(claims, line, event.at)
                ensure(fleet, claim is not None, f"{line} was asked for without a claim")
                assert claim is not None
                for write in kept.get((line.ref, line.line), ()):
                    ours = write.owner == claim.owner
                    earlier = write.ended < (event.at if ours else claim.begun)
                    lost = any(write.begun < loss < event.at for loss in fleet.losses)
                    again = earlier and not lost
                    ensure(fleet, not again, f"{line} was asked for at {event.at}, kept by {write}")
                part = written.get(line.ref)
                known = part is not None and _known(fleet, part, claim)
                ensure(fleet, not known, f"{line} was asked for at {event.at}, in a part by {part}")


def check_fence(fleet: Fleet, events: Sequence[Event], claims: Sequence[_Claim]) -> None:
    """No write of a claim is taken once another has the shard."""
    for name in ("ledger.checkpoint", "ledger.suspect"):
        for event, write in _writes(events, name):
            mine = event.args[0]
            others = [
                claim
                for claim in claims
                if claim.ref == mine["ref"] and claim.owner != mine["owner"] and claim.ended < write.begun
            ]
            own = [claim.ended for claim in claims if claim.owner == mine["owner"]]
            late = [claim for claim in others if claim.begun > max(own, default=0.0)]
            ensure(fleet, not late, f"{name} by {mine} was taken after {late}")


def _known(fleet: Fleet, part: _Write, claim: _Claim) -> bool:
    """Whether a claim had to know of a part: it came later, and a ledger made anew had heard of the part."""
    losses = [loss for loss in fleet.losses if part.begun < loss < claim.ended]
    made_anew = [at for at in fleet.rebuilds if part.ended < at < claim.begun]
    return part.ended < claim.begun and (not losses or bool(made_anew))


def generated_twice(fleet: Fleet) -> int:
    """How many answers were given in vain: to lines that died with an engine, a worker or a lease."""
    lines = [
        (line.ref, line.line)
        for event in fleet.events.named("engine.answer")
        for line in filter(None, map(LineId.parse, event.ids))
    ]
    return len(lines) - len(set(lines))


def _claims(events: Sequence[Event]) -> Iterator[_Claim]:
    for event, write in _writes(events, "ledger.claim"):
        if isinstance(event.result, dict):
            found = event.result
            yield _Claim(write.begun, write.ended, found["ref"], found["epoch"], found["owner"])


def _claim_of(claims: Sequence[_Claim], line: LineId, at: float) -> _Claim | None:
    """The latest of the line's shard and epoch before it was asked for."""
    found = [each for each in claims if (each.ref, each.epoch) == (line.ref, line.epoch) and each.ended <= at]
    return found[-1] if found else None


def _written(events: Sequence[Event]) -> dict[str, _Write]:
    """When the parts of shards were put into the store."""
    written: dict[str, _Write] = {}
    for event, write in _writes(events, "store.create"):
        found = _PART.fullmatch(str(event.args[0]))
        if found and event.result is True:
            written[f"{found[1]}/{int(found[2])}"] = write
    return written


def _kept(events: Sequence[Event]) -> dict[tuple[str, int], list[_Write]]:
    """When lines were checkpointed, and by whom."""
    kept: dict[tuple[str, int], list[_Write]] = {}
    for event, write in _writes(events, "ledger.checkpoint"):
        claim, lines, *_ = event.args
        for line in lines:
            kept.setdefault((claim["ref"], int(line)), []).append(replace(write, owner=claim["owner"]))
    return kept


def _writes(events: Sequence[Event], name: str) -> Iterator[tuple[Event, _Write]]:
    """Calls that succeeded, of those that were entered on both sides: a process may sleep in between."""
    begun: dict[tuple[int, str], float] = {}
    for event in events:
        if event.name == name:
            call = (event.pid, repr(event.args))
            if event.when == "before":
                begun[call] = event.at
            elif event.when == "after":
                yield event, _Write(begun[call], event.at)
