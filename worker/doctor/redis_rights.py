"""What the user of LONGHAUL_REDIS_URL may do in Redis. Owns the list of what a fleet has to be allowed.

Tries it all on keys of its own under the fleet's prefix, and removes them.
"""

import secrets

import redis
from redis.exceptions import ExecAbortError, NoPermissionError, OutOfMemoryError, ResponseError

from jobs import call_offs
from worker.doctor.finding import Verdict, fail, ok, warn
from worker.doctor.subject import Subject

#: What the ledger's scripts, its plain commands and Celery's transport send. {key} is a name of our own.
_COMMANDS = (
    "SET {key}:text 1 PX 60000", "GET {key}:text", "INCRBY {key}:text 1", "DECRBY {key}:text 1",
    "EXISTS {key}:text", "EXPIRE {key}:text 60", "PEXPIRE {key}:text 60000",
    "HSET {key}:hash a 1", "EXPIRE {key}:hash 60", "HGET {key}:hash a", "HMGET {key}:hash a",
    "HGETALL {key}:hash", "HVALS {key}:hash", "HLEN {key}:hash", "HINCRBY {key}:hash a 1",
    "HDEL {key}:hash b", "SADD {key}:set a b", "EXPIRE {key}:set 60", "SMEMBERS {key}:set",
    "SCARD {key}:set", "SREM {key}:set a", "ZADD {key}:sorted 1 a 2 b", "EXPIRE {key}:sorted 60",
    "ZINCRBY {key}:sorted 1 a", "ZSCORE {key}:sorted a", "ZCARD {key}:sorted",
    "ZRANGE {key}:sorted 0 -1", "ZRANGEBYSCORE {key}:sorted 0 1",
    "ZREVRANGE {key}:sorted 0 -1", "ZREVRANGEBYSCORE {key}:sorted 1 0", "ZREM {key}:sorted a",
    "LPUSH {key}:list a b", "RPUSH {key}:list c d", "EXPIRE {key}:list 60", "LLEN {key}:list",
    "RPOP {key}:list", "BRPOP {key}:list 1", "TIME", "WATCH {key}:text", "MULTI", "EXEC",
    "UNWATCH", "DEL {key}:text {key}:hash {key}:set {key}:sorted {key}:list",
)  # fmt: skip
#: Like the ledger's, it is given the prefix as its one key, and makes the names of all others from it.
_SCRIPT = """
redis.call('HSET', KEYS[1] .. ARGV[1], 'a', 1)
redis.call('EXPIRE', KEYS[1] .. ARGV[1], 60)
return redis.call('TIME')
"""
_CHANNEL_RIGHTS = "+publish +subscribe +unsubscribe"
_ANSWER_SECONDS = 5.0
_RIGHTS = "+@connection +@transaction +@scripting +@read +@write +time +info"
#: Refused commands that are named; the others are counted.
_NAMED = 8


def rights(subject: Subject) -> Verdict:
    """Everything that workers and producers send is allowed, on keys that begin with the prefix."""
    prefix, name = subject.settings.redis_prefix, f":doctor:{secrets.token_hex(8)}"
    try:
        refused = [
            *_refused_scripts(subject.redis, prefix, f"{name}:hash"),
            *_refused_commands(subject.redis, f"{prefix}{name}"),
        ]
    except (redis.RedisError, OSError) as error:
        return fail(f"a trial on {prefix}:* did not work: {error}", "see Redis's log")
    finally:
        # A refused EXEC leaves its connection inside the transaction.
        subject.redis.connection_pool.disconnect()
    if refused:
        more = f" and {len(refused) - _NAMED} more" if len(refused) > _NAMED else ""
        return fail(
            f"refused on {prefix}:*: {', '.join(refused[:_NAMED])}{more}",
            f"allow it: ACL SETUSER <user> ~{prefix} ~{prefix}:* {_RIGHTS}",
        )
    return ok(f"all that a fleet sends is allowed on {prefix}:*")


def channel(subject: Subject) -> Verdict:
    """Workers are told at once of jobs that are called off, and their users may tell."""
    name, client = call_offs.channel(subject.settings), subject.redis
    subscription = client.pubsub()  # type: ignore[no-untyped-call]
    try:
        client.publish(name, "")
        subscription.subscribe(name)
        subscription.get_message(timeout=_ANSWER_SECONDS)
    except NoPermissionError:
        return warn(
            f"refused on {name}: lines of a cancelled job stop a second later than they could",
            f"allow it: ACL SETUSER <user> &{name} {_CHANNEL_RIGHTS}",
        )
    except (redis.RedisError, OSError) as error:
        return fail(f"a trial on {name} did not work: {error}", "see Redis's log")
    finally:
        subscription.close()
    return ok(name)


def user(subject: Subject) -> Verdict:
    """Whoever reaches the port is asked for a password."""
    name = _name(subject.redis) or subject.redis_options.get("username") or "default"
    if subject.redis_options.get("password") or subject.redis_is_here:
        return ok(str(name))
    return warn(
        f"{name}, without a password: whoever reaches {subject.redis_place} can read and change everything",
        "set requirepass, or make a user with ACL SETUSER, and put it into LONGHAUL_REDIS_URL",
    )


def _name(client: "redis.Redis") -> str | None:
    try:
        answer: object = client.acl_whoami()
    except (redis.RedisError, OSError):  # it may not ask, and is called what the URL says
        return None
    return answer.decode() if isinstance(answer, bytes) else str(answer)


def _refused_scripts(client: "redis.Redis", prefix: str, name: str) -> list[str]:
    """Whether a script may be loaded and run. Redis names what is refused inside of one in words alone."""
    try:
        client.register_script(_SCRIPT)(keys=[prefix], args=[name])
    except ResponseError as error:
        if isinstance(error, OutOfMemoryError):
            raise
        return ["EVALSHA, SCRIPT LOAD or what a script calls"]
    return []


def _refused_commands(client: "redis.Redis", key: str) -> list[str]:
    refused: dict[str, None] = {}
    # WATCH, MULTI and EXEC belong together: one connection.
    with client.client() as connection:  # type: ignore[no-untyped-call]
        for command in _COMMANDS:
            name, *words = command.format(key=key).split()
            try:
                connection.execute_command(name, *words)
            except (NoPermissionError, ExecAbortError):
                refused[name] = None
            except ResponseError:
                if not refused:  # else it misses what a refused command would have made
                    raise
    return list(refused)
