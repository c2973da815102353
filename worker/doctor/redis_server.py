"""Redis as a server: whether it answers, and forgets nothing. Owns what its figures mean for a fleet."""

from collections.abc import Callable
from typing import Any

import redis
from redis.exceptions import AuthenticationError, NoPermissionError

from worker.doctor.finding import Verdict, fail, ok, warn
from worker.doctor.subject import Subject

_OLDEST = (7, 0)
#: Of maxmemory; at the whole of it Redis refuses writes, and the fleet stands.
_NEARLY_FULL = 0.8


def reachable(subject: Subject) -> Verdict:
    """It answers, and takes the password."""
    place = subject.redis_place
    try:
        subject.redis.ping()
    except NoPermissionError:
        return ok(f"{place} answers")  # what this user may do is another check's
    except AuthenticationError as error:
        return fail(
            f"{place}: {error}", "put user and password into LONGHAUL_REDIS_URL: redis://user:password@…"
        )
    except (redis.RedisError, OSError) as error:
        return fail(f"{place} does not answer: {error}", "start it, or correct LONGHAUL_REDIS_URL")
    return ok(f"{place} answers")


def _told(judge: Callable[[dict[str, Any]], Verdict]) -> Callable[[Subject], Verdict]:
    """A check of what INFO says, for users that may ask."""

    def check(subject: Subject) -> Verdict:
        try:
            info = subject.redis_info
        except (redis.RedisError, OSError) as error:
            return fail(f"INFO is not answered: {error}", "see Redis's log")
        if info is None:
            return warn("not known: this user may not ask for INFO", "allow it: ACL SETUSER <user> +info")
        return judge(info)

    return check


@_told
def version(info: dict[str, Any]) -> Verdict:
    """Redis 7, or Valkey."""
    if info.get("server_name") == "valkey":
        return ok(f"Valkey {info.get('valkey_version')}")
    text = str(info.get("redis_version", "0"))
    numbers = tuple(int(part) for part in text.split(".")[:2] if part.isdecimal())
    if numbers < _OLDEST:
        return fail(f"Redis {text}", "install Redis 7 or newer, or Valkey")
    return ok(f"Redis {text}")


@_told
def role(info: dict[str, Any]) -> Verdict:
    """One primary: a replica takes no writes, and a cluster not what Celery sends."""
    mode = info.get("redis_mode") or info.get("server_mode", "standalone")
    if mode != "standalone":
        return fail(
            f"mode {mode}",
            "name a single primary: Celery's transport needs several keys at once",
        )
    if info.get("role") != "master":
        return fail("a replica, which takes no writes", "name its primary in LONGHAUL_REDIS_URL")
    return ok("a primary")


@_told
def eviction(info: dict[str, Any]) -> Verdict:
    """A full Redis refuses, and evicts nothing."""
    policy = info.get("maxmemory_policy")
    if policy != "noeviction":
        return fail(
            f"maxmemory-policy {policy}: keys are dropped when memory is full, and with them shards",
            "set maxmemory-policy noeviction",
        )
    return ok("noeviction")


def append_only_file(subject: Subject) -> Verdict:
    """What was acknowledged survives a restart."""
    verdict = _append_only_file(subject)
    if verdict.status != "ok":
        return verdict
    try:
        every = subject.redis.config_get("appendfsync").get("appendfsync")
    except NoPermissionError:
        return warn(
            f"{verdict.found}; appendfsync not known: this user may not ask for CONFIG GET",
            "see to it that it is everysec",
        )
    except (redis.RedisError, OSError) as error:  # managed services answer that there is no such command
        return warn(f"{verdict.found}; appendfsync not known: {error}", "see to it that it is everysec")
    if every == "no":
        return warn(
            "on, appendfsync no: a crash of the machine can lose half a minute", "set appendfsync everysec"
        )
    return ok(f"on, appendfsync {every}")


@_told
def _append_only_file(info: dict[str, Any]) -> Verdict:
    if not info.get("aof_enabled"):
        return fail(
            "off: what Redis knows of jobs and shards is lost when it restarts",
            "set appendonly yes and appendfsync everysec",
        )
    for name in ("aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status"):
        if info.get(name, "ok") != "ok":
            return fail(
                f"on, but {name} is {info[name]}", "see to the disk that Redis writes to, and to its log"
            )
    return ok("on")


@_told
def memory(info: dict[str, Any]) -> Verdict:
    """There is room for what comes."""
    used, limit = int(info["used_memory"]), int(info.get("maxmemory") or 0)
    if not limit:
        return ok(f"{_mib(used)} used, no maxmemory")
    found = f"{_mib(used)} used of {_mib(limit)}"
    if used > _NEARLY_FULL * limit:
        return warn(
            f"{found}: once it is full no work goes on", "raise maxmemory, or find out what else is in there"
        )
    return ok(found)


def tls(subject: Subject) -> Verdict:
    """Passwords and answers do not cross a network in the clear."""
    if subject.settings.redis_url.get_secret_value().startswith("rediss://"):
        return ok("in use; the certificate is checked")
    if subject.redis_is_here:
        return ok("not in use, on this machine alone")
    return warn(
        "not in use: the password and what models answer cross the network in the clear",
        "give Redis a certificate and write rediss:// in LONGHAUL_REDIS_URL, or keep the network to yourself",
    )


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
