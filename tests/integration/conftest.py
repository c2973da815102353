"""Fixtures of the producer's tests: services of a test's own, and a client of them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.settings import Settings, load_settings
from producer.client import Client
from tests.services import Valkey


@pytest.fixture
def settings(valkey: Valkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The services' settings, also in the environment; the working directory is the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LONGHAUL_REDIS_URL", valkey.url)
    monkeypatch.setenv("LONGHAUL_STORE_URL", f"file://{tmp_path}/store")
    monkeypatch.setenv("LONGHAUL_SHARD_LINES", "2")
    return load_settings()


@pytest.fixture
def client(settings: Settings) -> Iterator[Client]:
    client = Client(settings)
    yield client
    client.close()
