"""Clocks: this machine's beside Redis's and the object store's. Owns how far apart they may be."""

import http.client
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import redis
from redis.exceptions import NoPermissionError

from worker.doctor.finding import Verdict, fail, ok, warn
from worker.doctor.subject import Subject

_APART_SECONDS = 1.0
#: A Date header has whole seconds.
_DATE_SECONDS = 1.0
_TIMEOUT_SECONDS = 4.0


def of_redis(subject: Subject) -> Verdict:
    """Leases and deadlines go by Redis's clock, logs and the dates of jobs by each machine's own."""

    def told() -> float:
        seconds, microseconds = subject.redis.time()
        return float(seconds) + float(microseconds) / 1e6

    try:
        return _compared(told, "Redis", 0.0)
    except NoPermissionError:
        return warn("not known: this user may not ask for TIME", "allow it: ACL SETUSER <user> +time")
    except (redis.RedisError, OSError) as error:
        return fail(f"TIME is not answered: {error}", "see Redis's log")


def of_store(subject: Subject) -> Verdict | None:
    """S3 refuses requests that were signed a quarter of an hour ago."""
    settings = subject.settings
    if not settings.store_url.startswith("s3://"):
        return None
    endpoint = settings.s3_endpoint or f"https://s3.{settings.s3_region}.amazonaws.com"
    try:
        return _compared(lambda: _date(endpoint), "the store", _DATE_SECONDS)
    except (OSError, http.client.HTTPException, ValueError, TypeError) as error:
        return warn(f"not known: {endpoint} tells no date: {error}", "compare it by hand")


def _compared(told: Callable[[], float], whose: str, grain: float) -> Verdict:
    before = time.time()
    theirs = told()
    after = time.time()
    skew = theirs + grain / 2 - (before + after) / 2
    if abs(skew) <= _APART_SECONDS + (after - before + grain) / 2:
        return ok(f"within {_APART_SECONDS + grain / 2:.1f} s of {whose}'s")
    direction = "behind" if skew > 0 else "ahead of"
    return warn(
        f"this machine's is {abs(skew):.1f} s {direction} {whose}'s",
        "set both by NTP: chronyd or systemd-timesyncd",
    )


def _date(endpoint: str) -> float:
    """When a server says that it answered, whatever it answers."""
    url = urlsplit(endpoint)
    kind = http.client.HTTPConnection if url.scheme == "http" else http.client.HTTPSConnection
    connection = kind(url.netloc, timeout=_TIMEOUT_SECONDS)
    try:
        connection.request("HEAD", "/")
        return parsedate_to_datetime(connection.getresponse().headers["Date"]).timestamp()
    finally:
        connection.close()
