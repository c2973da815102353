"""The count of faults, also where other test processes report to one that has loaded none of these tests."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos import tally

TESTS = """
import pytest

@pytest.mark.parametrize("faults", {counts})
def test_a_fleet(request, faults):
    request.node.user_properties.append(("chaos", faults))
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Tests that report faults, laid out as here."""
    folder = tmp_path / "tests" / "chaos"
    folder.mkdir(parents=True)
    for package in (folder, folder.parent):
        (package / "__init__.py").touch()
    (tmp_path / "pytest.ini").write_text("[pytest]\ntestpaths = tests\n")
    (folder.parent / "conftest.py").write_text('pytest_plugins = ["tests.chaos.tally"]\n')
    shutil.copy(tally.__file__, folder)
    return tmp_path


def run(project: Path, counts: list[int], *options: str) -> tuple[int, str]:
    """The exit status of a run, and what it says."""
    (project / "tests" / "chaos" / "test_fleets.py").write_text(TESTS.format(counts=counts))
    environment = {**os.environ, "PYTHONPATH": str(project)}
    command = [sys.executable, "-m", "pytest", "-p", "no:valkey", "-p", "no:cacheprovider", *options]
    done = subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("options", [("-n", "2"), ("-p", "no:xdist")])
def test_a_whole_run_with_too_few_faults_fails(project: Path, options: tuple[str, ...]) -> None:
    status, said = run(project, [120, 79], *options)
    assert status == 1
    assert "chaos: 199 faults injected, of at least 200, into 2 fleets" in said
    status, said = run(project, [120, 80], *options)
    assert status == 0
    assert "chaos: 200 faults injected, of at least 200, into 2 fleets" in said


def test_a_part_of_the_run_may_have_few(project: Path) -> None:
    status, said = run(project, [1, 2], "-n", "2", "-k", "fleet")
    assert status == 0
    assert "chaos: 3 faults injected, into 2 fleets" in said


def test_our_own_run_counts(pytestconfig: pytest.Config) -> None:
    assert pytestconfig.pluginmanager.has_plugin("tests.chaos.tally")
