"""How many faults a run of the tests has injected: counted, shown at its end, and never too few.

A plugin of its own, named by tests/conftest.py: with test processes beside each other, the one that collects
their reports does not load the conftest of this folder.
"""

from pathlib import Path
from typing import Any

import pytest

#: What a run of the whole folder injects at least.
MINIMUM = 200
#: The property of a test that says how many faults its fleet suffered.
PROPERTY = "chaos"


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A whole run that injected too little has failed."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or hasattr(session.config, "workerinput"):
        return  # the one that the others report to decides
    if exitstatus == 0 and _whole(session.config) and sum(_counts(reporter)) < MINIMUM:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """One line on how much was injected."""
    counts, whole = _counts(terminalreporter), _whole(config)
    if counts or whole:
        least = f", of at least {MINIMUM}" if whole else ""
        terminalreporter.write_line(f"chaos: {sum(counts)} faults injected{least}, into {len(counts)} fleets")


def _counts(reporter: Any) -> list[int]:
    """The faults of each fleet, also of those in other test processes."""
    reports = [report for kind in ("passed", "failed") for report in reporter.getreports(kind)]
    called = [report for report in reports if report.when == "call"]
    return [value for report in called for name, value in report.user_properties if name == PROPERTY]


def _whole(config: pytest.Config) -> bool:
    """Whether all tests of this folder were asked for."""
    here, given = Path(__file__).parent, [Path(arg).resolve() for arg in config.args]
    chosen = config.getoption("keyword") or config.getoption("markexpr")
    return not chosen and any(path == here or path in here.parents for path in given)
