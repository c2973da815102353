"""Fixtures for all tests: real services. What each is and how it is ended stands in tests/services.py."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Several test processes share the CPUs, and each has torch: waiting threads must sleep, not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", "1")
from hypothesis import HealthCheck, settings

from tests import devices
from tests.models import small_model
from tests.services import S3, Valkey, s3_server, valkey_server

pytest_plugins = ["tests.chaos.tally"]

# A loaded machine is no failure; and the same commit gives the same verdict in CI.
settings.register_profile(
    "longhaul",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize="CI" in os.environ,
)
settings.load_profile("longhaul")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `device` runs on each device at hand."""
    if "device" in metafunc.fixturenames:
        metafunc.parametrize("device", devices.at_hand(), scope="session")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Such a test has the mark `device`."""
    if "device" in getattr(item, "fixturenames", ()):
        item.add_marker("device")


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    """A fresh Valkey server for one test."""
    with valkey_server(tmp_path / "valkey") as server:
        yield server


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """An S3 server, one per test process: take a prefix of your own with `s3.url(prefix)`."""
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The small real model, in InternLM2 layout."""
    return small_model()
