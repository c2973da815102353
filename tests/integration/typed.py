"""The `producer` command as tests type it: in this process, or in one of its own."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from typer.testing import CliRunner, Result

from jobs.ledger import Ledger
from jobs.records import JobStatus
from jobs.settings import Settings
from producer.cli import app
from tests.integration.fleet_of_one import FleetOfOne
from tests.services import kill, reaper

#: Nobody listens there.
NOWHERE = "redis://127.0.0.1:1/0"


def run(*words: str, given: bytes | None = None) -> Result:
    return CliRunner().invoke(app, words, input=given)


def error_of(result: Result) -> str:
    """The one line of an error."""
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return str(line)


@contextmanager
def spawned(*words: str) -> Iterator["subprocess.Popen[bytes]"]:
    """The command beside the test; it does not outlive the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "producer", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    reaper().guard(process.pid)
    with process:
        try:
            yield process
        finally:
            kill(process)


def spawned_to_its_end(*words: str) -> tuple[int, str, str]:
    """Exit status, output and errors."""
    with spawned(*words) as process:
        out, errors = process.communicate(timeout=60)
        return process.returncode, out.decode(), errors.decode()


def write(name: str, *rows: object) -> str:
    Path(name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return name


def prompts(*texts: str) -> Sequence[object]:
    return [{"prompt": text} for text in texts]


def lines_of(name: str) -> list[str]:
    return Path(name).read_text().splitlines()


@contextmanager
def working(settings: Settings) -> Iterator[None]:
    """Works off the first job that appears, beside the test."""
    ledger = Ledger.open(settings)
    done = threading.Event()

    def work() -> None:
        while not done.wait(0.01):
            jobs = ledger.jobs()
            if jobs and not jobs[0].state.final:
                FleetOfOne(settings=settings).work(jobs[0].spec)
                return

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(30)
        ledger.close()


def job_now(settings: Settings) -> JobStatus:
    """The latest job."""
    ledger = Ledger.open(settings)
    try:
        return ledger.jobs()[0]
    finally:
        ledger.close()
