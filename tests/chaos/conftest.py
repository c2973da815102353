"""Fixtures for chaos: services that fleets share, and the count of all that was injected."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.fleet import CONSTANTS, Fleet, Services, fleet
from tests.services import S3, Valkey, valkey_server

#: What a run of the whole folder injects at least.
MINIMUM = 200

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
            request.node.user_properties.append(("chaos", made.faults))

    return make


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A whole run that injected too little has failed."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or hasattr(session.config, "workerinput"):
        return  # the one that the others report to decides
    if exitstatus == 0 and _whole(session.config) and sum(_counts(reporter)) < MINIMUM:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """One line on how much was injected."""
    if counts := _counts(terminalreporter):
        least = f", of at least {MINIMUM}" if _whole(config) else ""
        terminalreporter.write_line(f"chaos: {sum(counts)} faults injected{least}, into {len(counts)} fleets")


def _counts(reporter: Any) -> list[int]:
    """The faults of each fleet, also of those in other test processes."""
    reports = [report for kind in ("passed", "failed") for report in reporter.getreports(kind)]
    called = [report for report in reports if report.when == "call"]
    return [value for report in called for name, value in report.user_properties if name == "chaos"]


def _whole(config: pytest.Config) -> bool:
    """Whether all tests of this folder were asked for."""
    here, given = Path(__file__).parent, [Path(arg).resolve() for arg in config.args]
    chosen = config.getoption("keyword") or config.getoption("markexpr")
    return not chosen and any(path == here or path in here.parents for path in given)
