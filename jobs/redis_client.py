"""Connections to Redis: the URL, TLS, time limits, and the ledger's scripts.

Owns how Redis is reached and how its failures become `LedgerError`. Never knows what a key means.
"""

import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

from jobs.errors import LedgerError, SettingsError
from jobs.settings import Settings

_LUA = Path(__file__).parent / "lua"
_COMMON = "_common"


def tls_options(settings: Settings) -> dict[str, Any]:
    """What redis-py and Celery need for `rediss://`: certificates are checked, always. Empty without TLS.

    `SettingsError` names a file that is not there.
    """
    if not settings.redis_url.get_secret_value().startswith("rediss://"):
        return {}
    files = {
        "ssl_ca_certs": settings.redis_ca_file,
        "ssl_certfile": settings.redis_cert_file,
        "ssl_keyfile": settings.redis_key_file,
    }
    for path in files.values():
        if path is not None and not path.is_file():
            raise SettingsError(
                f"{path}: no such file; LONGHAUL_REDIS_CA_FILE, _CERT_FILE, _KEY_FILE name it"
            )
    given = {name: str(path) for name, path in files.items() if path is not None}
    return {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True, **given}


class RedisClient:
    """One Redis, asked through scripts. Safe to share between threads; nothing is contacted until needed."""

    def __init__(self, settings: Settings) -> None:
        url = settings.redis_url.get_secret_value()
        #: Host, port and database, without the password: for messages.
        self.place = url.rpartition("@")[2].partition("?")[0]
        try:
            self.redis = redis.Redis.from_url(
                url,
                protocol=2,
                socket_connect_timeout=3,
                socket_timeout=5,
                socket_keepalive=True,
                retry=Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), 1),
                **tls_options(settings),
            )
        except ValueError:  # its text may quote a part of the password
            raise LedgerError(
                "LONGHAUL_REDIS_URL can not be read: write redis://user:password@host:port/0, "
                "and %2F for a / in the password, %3F for a ?, %40 for an @"
            ) from None
        self._scripts = {name: self.redis.register_script(source) for name, source in _sources().items()}

    def run(self, script: str, keys: tuple[str, ...], arguments: tuple[bytes | str | int, ...]) -> Any:
        """The script's answer; `LedgerError` if there is none."""
        with self.translated():
            return self._scripts[script](keys=keys, args=arguments)

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Redis's failures as `LedgerError`."""
        try:
            yield
        except (redis.RedisError, OSError) as error:
            raise LedgerError(f"Redis at {self.place} does not serve: {error}") from error

    def close(self) -> None:
        """Give the connections back."""
        with self.translated():
            self.redis.close()


@cache
def _sources() -> Mapping[str, str]:
    """The scripts by name, each with what is common to several in front of it."""
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(_LUA.glob("*.lua"))}
    common = texts.pop(_COMMON)
    return {name: common + text for name, text in texts.items()}
