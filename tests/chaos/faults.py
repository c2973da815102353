"""The faults themselves: what is done to a fleet from outside, each with its name in a table.

Owns how each is injected, how long it lasts and how it ends. Each returns once it has ended, but for what the
fleet tends by itself: a dead worker is started again, a suspended one is woken. Never says when.
"""

import shutil
import signal
import time
from collections.abc import Callable, Mapping
from typing import Final

from jobs.broker import celery_app, publish
from jobs.records import ShardRef
from tests.chaos.fleet import MODEL, Fleet
from tests.chaos.http_faults import Verdict, anything, writes
from tests.chaos.proxy import Blackhole, Cut, Delay, Mode, Pass, Proxy, Refuse, Reset, Stall
from tests.chaos.workers import Worker, send

Fault = Callable[[Fleet], None]

#: How long to wait for traffic that a fault can meet.
_MEET: Final = 3.0


def _some_worker(fleet: Fleet) -> Worker:
    fleet.until(lambda: bool(fleet.living()), "a worker that lives and is awake")
    return fleet.random.choice(fleet.living())


# Processes


def kill_worker(fleet: Fleet) -> None:
    """SIGKILL to a worker process; its engine notices by itself."""
    worker = _some_worker(fleet)
    fleet.note(f"kill {worker.name}")
    send(worker.pid, signal.SIGKILL)


def kill_engine(fleet: Fleet) -> None:
    """SIGKILL to an engine; its worker starts another."""
    worker = _with_engine(fleet)
    fleet.note(f"kill the engine of {worker.name}")
    for pid in worker.engines()[:1]:
        send(pid, signal.SIGKILL)


def hang_engine(fleet: Fleet) -> None:
    """SIGSTOP to an engine, for good: the watchdog has to find it."""
    worker = _with_engine(fleet)
    fleet.note(f"hang the engine of {worker.name}")
    for pid in worker.engines()[:1]:
        send(pid, signal.SIGSTOP)


def suspend_worker(fleet: Fleet) -> None:
    """SIGSTOP to a worker until its leases have run out; its engine goes on."""
    worker = _some_worker(fleet)
    fleet.note(f"suspend {worker.name}")
    if send(worker.pid, signal.SIGSTOP):
        fleet.sleeps(worker.pid)


def drain_worker(fleet: Fleet) -> None:
    """SIGTERM, as a machine is taken out of service; another takes its place."""
    worker = _some_worker(fleet)
    fleet.note(f"drain {worker.name}")
    send(worker.pid, signal.SIGTERM)


def _with_engine(fleet: Fleet) -> Worker:
    found: list[Worker] = []

    def look() -> bool:
        found[:] = [worker for worker in fleet.living() if worker.engines()]
        return bool(found)

    fleet.until(look, "a worker with an engine")
    return fleet.random.choice(found)


# Leases


def steal(fleet: Fleet) -> None:
    """Let a lease run out while its worker lives: two are on one shard."""
    key = f"{fleet.prefix}:leases"
    with fleet.services.valkey.client() as redis:
        held = sorted(redis.zrange(key, 0, -1))
        if not held:
            return
        ref = fleet.random.choice(held)
        fleet.note(f"take the lease of {ref.decode()}")
        redis.zadd(key, {ref: 0}, xx=True)


# Hints


def double_hints(fleet: Fleet) -> None:
    """Each shard that is open is announced twice more, those in work as well."""
    with fleet.services.valkey.client() as redis:
        refs = [
            ShardRef.parse(ref.decode())
            for key in ("leases", f"due:{MODEL}")
            for ref in redis.zrange(f"{fleet.prefix}:{key}", 0, -1)
        ]
    fleet.note(f"double the hints of {len(refs)} shards")
    publish(celery_app(fleet.direct()), MODEL, [*refs, *refs])


def lose_hints(fleet: Fleet) -> None:
    """The queue is emptied: what is due is known to the ledger alone."""
    with fleet.services.valkey.client() as redis:
        lost = redis.delete(f"{fleet.prefix}:queue:{MODEL}")
    fleet.note(f"lose the queue: {lost}")


# Redis


def restart_redis(fleet: Fleet) -> None:
    """Stop Valkey in good order, and start it again a moment later."""
    fleet.note("restart Valkey")
    fleet.services.valkey.stop()
    _start_redis(fleet, after=fleet.random.uniform(0, 1.5))


def kill_redis(fleet: Fleet) -> None:
    """SIGKILL to Valkey: its append-only file has all that it acknowledged."""
    fleet.note("kill Valkey")
    fleet.services.valkey.kill()
    _start_redis(fleet, after=fleet.random.uniform(0, 1.5))


def _start_redis(fleet: Fleet, after: float) -> None:
    """Start Valkey again; returns once it has loaded what it had."""
    fleet.hold(after)
    fleet.services.valkey.start()
    with fleet.services.valkey.client() as client:
        fleet.until(lambda: not client.info("persistence")["loading"], "Valkey to load its file")


def flush_redis(fleet: Fleet) -> None:
    """FLUSHALL: nothing is known any more; the ledger is made anew from the store."""
    fleet.note("FLUSHALL")
    with fleet.services.valkey.client() as redis:
        redis.flushall()
    _lost(fleet)


def lose_redis(fleet: Fleet) -> None:
    """SIGKILL to a Valkey without an append-only file."""
    fleet.note("kill Valkey without its file")
    server = fleet.services.valkey
    server.kill()
    shutil.rmtree(server.folder / "appendonlydir")
    _start_redis(fleet, after=fleet.random.uniform(0, 1))
    _lost(fleet)


def _lost(fleet: Fleet) -> None:
    fleet.losses.append(time.monotonic())
    fleet.hold(fleet.random.uniform(0, 0.5))
    fleet.rebuild()


# The network


def _network(fleet: Fleet, name: str, proxy: Proxy, mode: Mode, seconds: float) -> None:
    """A mode for so long, from the moment that it meets traffic; it does not count where it meets none."""
    proxy.set(mode)
    if isinstance(mode, Refuse) or proxy.met(seconds=_MEET):
        fleet.note(f"{name}: {mode}")
        fleet.hold(seconds)
    proxy.set(Pass())


def _modes(fleet: Fleet) -> dict[str, tuple[Mode, float]]:
    draws = fleet.random
    lease = float(fleet.settings["lease_seconds"])
    return {
        "blackhole": (Blackhole(), draws.uniform(0.2, 1.5 * lease)),
        "stall": (Stall(), draws.uniform(0.2, 1.5 * lease)),
        "delay": (Delay(draws.uniform(0.02, 0.3)), draws.uniform(0.5, lease)),
        "reset": (Reset(), draws.uniform(0, 0.5)),
        "refuse": (Refuse(), draws.uniform(0.2, lease)),
        "cut": (Cut(draws.randrange(1, 400)), 0.3),
    }


def _on_redis(kind: str) -> Fault:
    return lambda fleet: _network(fleet, "Redis", fleet.redis, *_modes(fleet)[kind])


def _on_store(kind: str) -> Fault:
    return lambda fleet: _network(fleet, "store", fleet.store, *_modes(fleet)[kind])


# The store


def _requests(fleet: Fleet, name: str, verdict: Verdict, count: int, *, only_writes: bool) -> None:
    """The next few requests get a verdict, as far as there are any in time."""
    before = fleet.requests.met
    fleet.requests.next(count, verdict, writes if only_writes else anything)
    try:
        fleet.until(lambda: fleet.requests.met > before, "a request", seconds=_MEET)
    except AssertionError:
        fleet.requests.clear()
        return
    fleet.note(f"store: {name} to the next {count} requests")
    if verdict is Verdict.SILENCE:
        fleet.hold(fleet.random.uniform(0.2, 1.5))
        fleet.requests.clear()


def slow_down(fleet: Fleet) -> None:
    """The store answers 503 for a while, more often than its client tries again."""
    count = fleet.random.randrange(1, 12)
    _requests(fleet, "503", Verdict.SLOW_DOWN, count, only_writes=False)


def silence(fleet: Fleet) -> None:
    """The store does not answer; its gateway gives up in the end."""
    _requests(fleet, "silence", Verdict.SILENCE, fleet.random.randrange(1, 4), only_writes=False)


def lose_answers(fleet: Fleet) -> None:
    """The store does what it is asked, and the answer is lost: a part is there that its writer saw fail."""
    _requests(fleet, "lost answers", Verdict.LOST, fleet.random.randrange(1, 4), only_writes=True)


NETWORK: Final = ("blackhole", "stall", "delay", "reset", "refuse", "cut")

#: All that a fleet must survive with every line done once.
FAULTS: Final[Mapping[str, Fault]] = {
    "kill_worker": kill_worker,
    "kill_engine": kill_engine,
    "hang_engine": hang_engine,
    "suspend_worker": suspend_worker,
    "drain_worker": drain_worker,
    "steal": steal,
    "double_hints": double_hints,
    "lose_hints": lose_hints,
    "restart_redis": restart_redis,
    "kill_redis": kill_redis,
    **{f"redis_{kind}": _on_redis(kind) for kind in NETWORK},
    **{f"store_{kind}": _on_store(kind) for kind in NETWORK},
    "slow_down": slow_down,
    "silence": silence,
    "lose_answers": lose_answers,
}

#: The same where lines that were kept may be generated again, as nobody knows of them any more.
LOSSES: Final[Mapping[str, Fault]] = {"flush_redis": flush_redis, "lose_redis": lose_redis}
