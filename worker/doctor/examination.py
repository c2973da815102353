"""The table of all checks, and the order in which they are made. Never looks at anything itself."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from jobs.errors import JobsError
from model.errors import ModelError
from worker.doctor import clocks, devices, model_files, ports, redis_rights, redis_server, store
from worker.doctor.finding import Finding, Status, Verdict, fail, ok
from worker.doctor.subject import Subject
from worker.errors import WorkerError


class Check(NamedTuple):
    """One check; None as its verdict where there is nothing to check."""

    name: str
    look: Callable[[Subject], Verdict | None]
    #: Names of earlier checks without which it can not be made.
    needs: tuple[str, ...] = ()


def _settings(subject: Subject) -> Verdict:
    model = subject.settings.served_name
    return ok(f"serve {model or 'no model'} on {subject.settings.device_groups}")


CHECKS = (
    Check("settings", _settings),
    Check("redis", redis_server.reachable, ("settings",)),
    Check("redis version", redis_server.version, ("redis",)),
    Check("redis role", redis_server.role, ("redis",)),
    Check("redis eviction", redis_server.eviction, ("redis",)),
    Check("redis append-only file", redis_server.append_only_file, ("redis",)),
    Check("redis memory", redis_server.memory, ("redis",)),
    Check("redis tls", redis_server.tls, ("settings",)),
    Check("redis user", redis_rights.user, ("redis",)),
    Check("redis rights", redis_rights.rights, ("redis",)),
    Check("redis channel", redis_rights.channel, ("redis rights",)),
    Check("redis clock", clocks.of_redis, ("redis",)),
    Check("store", store.conditional_create, ("settings",)),
    Check("store latency", store.latency, ("store",)),
    Check("store folder", store.folder, ("store",)),
    Check("store tls", store.tls, ("settings",)),
    Check("store clock", clocks.of_store, ("store",)),
    Check("device groups", devices.groups, ("settings",)),
    Check("devices", devices.present, ("device groups",)),
    Check("engine", devices.engine, ("device groups",)),
    Check("lines at once", devices.lines_at_once, ("device groups",)),
    Check("profile", devices.profile, ("device groups",)),
    Check("master ports", ports.master, ("device groups",)),
    Check("hccl ports", ports.hccl, ("device groups",)),
    Check("metrics ports", ports.metrics, ("device groups",)),
    Check("model", model_files.config, ("device groups",)),
    Check("model weights", model_files.weights, ("model",)),
    Check("tokenizer", model_files.tokenizer, ("model",)),
    Check("generation config", model_files.generation_config, ("model",)),
    Check("feature matrix", model_files.matrix, ("model", "profile")),
)


def examine(subject: Subject) -> Iterator[Finding]:
    """Make every check in turn."""
    broken: set[str] = set()
    for check in CHECKS:
        verdict = _verdict(check, subject, broken)
        if verdict is None:
            continue
        if verdict.status in (Status.FAIL, Status.SKIP):
            broken.add(check.name)
        yield Finding(check=check.name, status=verdict.status, found=verdict.found, advice=verdict.advice)


def _verdict(check: Check, subject: Subject, broken: set[str]) -> Verdict | None:
    missing = [name for name in check.needs if name in broken]
    if missing:
        return Verdict(Status.SKIP, f"not checked: {' and '.join(missing)} first")
    try:
        return check.look(subject)
    except (JobsError, ModelError, WorkerError) as error:
        return fail(str(error))
