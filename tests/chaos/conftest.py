"""Fixtures for chaos: services that fleets share, and fleets whose faults `tests.chaos.tally` counts."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.chaos.fleet import CONSTANTS, Fleet, Services, fleet
from tests.chaos.tally import PROPERTY
from tests.services import S3, Valkey, valkey_server

#: Makes a fleet of a seed and settings; of a Valkey of its own where one is given.
MakeFleet = Callable[..., AbstractContextManager[Fleet]]


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory, s3: S3) -> Iterator[Services]:
    """A Valkey and a SeaweedFS, one of each per test process."""
    with valkey_server(tmp_path_factory.mktemp("valkey")) as server:
        yield Services(server, s3)


@pytest.fixture
def make_fleet(
    services: Services, tmp_path: Path, request: pytest.FixtureRequest
) -> Callable[..., AbstractContextManager[Fleet]]:
    """Makes a running fleet; what it suffered is counted with the test."""

    @contextmanager
    def make(
        seed: int,
        *,
        valkey: Valkey | None = None,
        constants: Mapping[str, str] = CONSTANTS,
        store_url: str | None = None,
        **settings: str,
    ) -> Iterator[Fleet]:
        used = Services(valkey or services.valkey, services.s3)
        folder = tmp_path / f"chaos-{tmp_path.name}"
        made = fleet(used, folder, seed, settings, constants=constants, store_url=store_url)
        try:
            with made.running():
                yield made
        finally:
            request.node.user_properties.append((PROPERTY, made.faults))

    return make
