"""The object store: whether parts can be written once and only once, how fast, and for how long yet.

Leaves nothing behind in it.
"""

import secrets
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from jobs.errors import StoreError
from worker.doctor.finding import Verdict, fail, ok, warn
from worker.doctor.subject import Subject, is_loopback

_ROUNDS = 5
_SLOW_SECONDS = 1.0
_LITTLE_BYTES = 2**30


def conditional_create(subject: Subject) -> Verdict:
    """An object is created whole, and a second time is refused."""
    try:
        subject.store.probe()
    except StoreError as error:
        if "conditional" in str(error):
            return fail(
                str(error), "use a store that honours If-None-Match: AWS S3, SeaweedFS or MinIO, or a folder"
            )
        return fail(str(error), "correct LONGHAUL_STORE_URL and LONGHAUL_S3_*, or who may write there")
    return ok(f"{subject.store.url}: an object is created once only")


def latency(subject: Subject) -> Verdict:
    """A shard takes a handful of requests."""
    store, key = subject.store, f".probe/{secrets.token_hex(8)}"
    requests: dict[str, Callable[[], object]] = {
        "create": lambda: store.create(key, b"longhaul"),
        "get": lambda: store.get(key),
        "delete": lambda: store.delete([key]),
    }
    rounds = [{name: _seconds(request) for name, request in requests.items()} for _ in range(_ROUNDS)]
    medians = {name: statistics.median(each[name] for each in rounds) for name in requests}
    found = ", ".join(f"{name} {seconds * 1000:.1f} ms" for name, seconds in medians.items())
    if max(medians.values()) > _SLOW_SECONDS:
        return warn(f"{found} (medians of {_ROUNDS})", "use a store that is nearer")
    return ok(f"{found} (medians of {_ROUNDS})")


def folder(subject: Subject) -> Verdict | None:
    """A folder has room, and is the same folder for everybody."""
    scheme, _, path = subject.store.url.partition("://")
    if scheme != "file":
        return None
    free = shutil.disk_usage(Path(path).resolve()).free
    found = f"{free / 2**30:,.1f} GiB free"
    if free < _LITTLE_BYTES:
        return warn(found, "make room: a part that can not be written keeps its shard waiting")
    if not subject.redis_is_here:
        return warn(
            f"{found}; a folder, while Redis is elsewhere",
            "see to it that all workers and producers share this folder",
        )
    return ok(found)


def tls(subject: Subject) -> Verdict | None:
    """Dialogues and answers do not cross a network in the clear."""
    endpoint = subject.settings.s3_endpoint or ""
    if not subject.settings.store_url.startswith("s3://") or not endpoint.startswith("http://"):
        return None
    host = urlsplit(endpoint).hostname or ""
    if is_loopback(host):
        return ok("not in use, on this machine alone")
    return warn(
        "not in use: dialogues and answers cross the network in the clear",
        "write https:// in LONGHAUL_S3_ENDPOINT, or keep the network to yourself",
    )


def _seconds(action: Callable[[], object]) -> float:
    started = time.monotonic()
    action()
    return time.monotonic() - started
