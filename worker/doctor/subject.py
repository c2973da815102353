"""What is examined: the settings of this environment and what they lead to, each when first asked for.

Owns the opening. Raises the packages' own errors; which check they belong to is for the examination to say.
"""

import ipaddress
from functools import cached_property
from pathlib import Path
from typing import Any

import redis

from jobs.errors import LedgerError, SettingsError
from jobs.redis_client import RedisClient
from jobs.settings import Settings, load_settings
from jobs.storage import Store
from worker.groups import DeviceGroup, parse_groups
from worker.profiles import Profile, load_profile


class Subject:
    """A worker that could be started here."""

    @cached_property
    def settings(self) -> Settings:
        """As `worker up` reads them."""
        return load_settings()

    @cached_property
    def groups(self) -> tuple[DeviceGroup, ...]:
        """The device groups."""
        return parse_groups(self.settings.device_groups)

    @cached_property
    def profile(self) -> Profile:
        """The devices' profile; an empty one where none is named."""
        return load_profile(self.settings.profile)

    @property
    def checkpoint(self) -> Path:
        """The model's folder; `SettingsError` where none is named."""
        return self.settings.served_model()[0]

    def of_kind(self, *kinds: str) -> list[DeviceGroup]:
        """The groups of these kinds."""
        return [group for group in self.groups if group.kind in kinds]

    @cached_property
    def store(self) -> Store:
        """The object store."""
        return Store.open(self.settings)

    @cached_property
    def redis(self) -> "redis.Redis":
        """A client with the settings' TLS and time limits; nothing is contacted yet."""
        try:
            return RedisClient(self.settings).redis
        except LedgerError as error:
            # The reason would quote what stands in the password's place.
            raise SettingsError(
                "LONGHAUL_REDIS_URL can not be read: write redis://user:password@host:6379/0, with "
                "/ ? # @ : % of a password as %2F %3F %23 %40 %3A %25"
            ) from error

    @property
    def redis_options(self) -> dict[str, Any]:
        """What the URL was read as."""
        options: dict[str, Any] = self.redis.connection_pool.connection_kwargs
        return options

    @property
    def redis_place(self) -> str:
        """Where Redis is, without user and password."""
        options = self.redis_options
        where = options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
        return f"{where}/{options.get('db', 0)}"

    @property
    def redis_is_here(self) -> bool:
        """Whether what is said to Redis stays on this machine."""
        return "path" in self.redis_options or is_loopback(self.redis_options.get("host", "localhost"))

    @cached_property
    def redis_info(self) -> dict[str, Any] | None:
        """What Redis says of itself; None where this user may not ask."""
        try:
            info: dict[str, Any] = self.redis.info()
        except redis.exceptions.NoPermissionError:
            return None
        return info


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is that of this machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
