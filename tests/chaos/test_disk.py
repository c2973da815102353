"""Disks that are full: under the store, and under Redis."""

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from tests.chaos.conftest import MakeFleet
from tests.chaos.fleet import Fleet
from tests.chaos.invariants import check
from tests.chaos.work import work
from tests.services import valkey_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "longhaul-chaos", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path) -> Path:
    """Take what is left of it; the file that does."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    return filler


def suffer(fleet: Fleet, disk: Path, noticed: str) -> None:
    """The disk is full several times, each until somebody notices."""
    fleet.start(2)
    for _ in range(3):
        fleet.submit(work(fleet.random, 40))
        fleet.progress(5)
        fleet.note("fill the disk")
        filler = fill(disk)
        seen = len(logged(fleet, noticed))
        fleet.until(partial(said_more, fleet, noticed, seen), f"{noticed!r} in a log")
        fleet.hold(fleet.random.uniform(0, 1))
        filler.unlink()
    fleet.finish()
    check(fleet)


def logged(fleet: Fleet, text: str) -> list[str]:
    """The lines of the workers' logs that have a text in them."""
    logs = [worker.log.read_text(errors="replace") for worker in fleet.workers]
    return [line for log in logs for line in log.splitlines() if text in line]


def said_more(fleet: Fleet, text: str, times: int) -> bool:
    return len(logged(fleet, text)) > times


def test_the_disk_of_the_store_is_full(make_fleet: MakeFleet, small_disk: Path) -> None:
    with make_fleet(seed=70, store_url=f"file://{small_disk}") as fleet:
        suffer(fleet, small_disk, "No space left on device")


def test_the_disk_of_redis_is_full(make_fleet: MakeFleet, small_disk: Path) -> None:
    """Valkey refuses every write until there is room again."""
    with valkey_server(small_disk) as valkey, make_fleet(seed=71, valkey=valkey) as fleet:
        suffer(fleet, small_disk, "MISCONF")
