"""What a worker process tells the supervisor: it arrives, and it never holds up who tells."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from worker.report import REPORT_FD, GroupReport, Reporter, Reports


def report(tokens: int = 0, **more: object) -> GroupReport:
    given = {"group": "cpu:0", "state": "serving", "shards": 2, "lines": 3, "engine_starts": 1, **more}
    return GroupReport(tokens=tokens, **given)  # type: ignore[arg-type]


@pytest.fixture
def reports() -> Iterator[Reports]:
    reports = Reports()
    yield reports
    reports.close()


def open_reporter(reports: Reports, monkeypatch: pytest.MonkeyPatch) -> Reporter:
    """A reporter with the pipe to itself, as a child has it."""
    monkeypatch.setenv(REPORT_FD, str(os.dup(reports.descriptor)))
    reports.started()
    return Reporter.open()


def test_what_is_sent_arrives(reports: Reports, monkeypatch: pytest.MonkeyPatch) -> None:
    reporter = open_reporter(reports, monkeypatch)
    reports.read(0.0)
    assert reports.latest is None
    reporter.send(report(1))
    reporter.send(report(2, state="draining"))
    reports.read(1.0)
    assert reports.latest == report(2, state="draining")
    reporter.close()
    reports.read(2.0)
    assert reports.latest == report(2, state="draining")


def test_without_a_supervisor_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(REPORT_FD, raising=False)
    Reporter.open().send(report())
    for unusable in ("", "x", "99999"):
        monkeypatch.setenv(REPORT_FD, unusable)
        Reporter.open().send(report())


def test_a_full_pipe_drops_reports_and_keeps_them_whole(
    reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    reporter = open_reporter(reports, monkeypatch)
    for number in range(5000):
        reporter.send(report(number))
    reports.read(0.0)
    assert reports.latest is not None
    assert 0 < reports.latest.tokens < 4999
    reporter.send(report(5000))
    reports.read(1.0)
    assert reports.latest.tokens == 5000


def test_a_pipe_that_nobody_reads_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    reports = Reports()
    reporter = open_reporter(reports, monkeypatch)
    reports.close()
    reporter.send(report())
    reporter.send(report())


def test_the_pace_is_that_of_the_last_ten_seconds(reports: Reports, monkeypatch: pytest.MonkeyPatch) -> None:
    reporter = open_reporter(reports, monkeypatch)
    assert reports.tokens_per_second() == 0.0
    for second in range(31):
        reporter.send(report(100 * min(second, 20)))
        reports.read(float(second))
        if second == 15:
            assert reports.tokens_per_second() == 100.0
        if second == 25:
            assert reports.tokens_per_second() == 50.0
    assert reports.tokens_per_second() == 0.0


def test_a_process_that_says_nothing_any_more_has_no_pace(
    reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    reporter = open_reporter(reports, monkeypatch)
    for second in range(3):
        reporter.send(report(100 * second))
        reports.read(float(second))
    assert reports.tokens_per_second() == 100.0
    reports.read(13.0)
    assert reports.tokens_per_second() == 0.0


def test_a_line_that_is_no_report_is_passed_over(reports: Reports) -> None:
    os.write(reports.descriptor, b'{"group": 1}\n' + b"no json\n")
    reports.read(0.0)
    assert reports.latest is None
    reports.started()


def test_a_process_inherits_the_pipe_and_its_children_do_not(reports: Reports) -> None:
    code = (
        "import os, subprocess, sys\n"
        "from worker.report import GroupReport, Reporter\n"
        "told = dict(group='g', state='starting', shards=0, lines=0, tokens=7, engine_starts=0)\n"
        "Reporter.open().send(GroupReport(**told))\n"
        f"fd = os.environ[{REPORT_FD!r}]\n"
        "child = 'import os, sys; os.fstat(int(sys.argv[1]))'\n"
        "done = subprocess.run([sys.executable, '-c', child, fd], close_fds=False, capture_output=True)\n"
        "sys.exit(b'Bad file descriptor' not in done.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, REPORT_FD: str(reports.descriptor)},
        pass_fds=(reports.descriptor,),
        check=False,
    )
    reports.started()
    assert done.returncode == 0
    reports.read(0.0)
    assert reports.latest is not None
    assert reports.latest.tokens == 7
