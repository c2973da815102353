"""The supervisor's promises, with real worker processes around a tiny model: restarts, and no orphans."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.fleet import Place, Worker
from tests.services import Valkey, wait_until
from tests.tiny_checkpoint import make_tiny_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture
def place(valkey: Valkey, tmp_path: Path) -> Place:
    model = make_tiny_checkpoint(tmp_path / "tiny")
    return Place.at(tmp_path, redis=valkey.url, store=f"file://{tmp_path}/store", model=model)


def child(worker: Worker) -> psutil.Process:
    worker.wait_for("worker ready")
    return psutil.Process(worker.events("worker process started")[-1]["pid"])


def test_a_process_that_dies_is_started_again(place: Place) -> None:
    with place.worker() as worker:
        child(worker).send_signal(signal.SIGKILL)
        worker.wait_for("worker ready", count=2)
        died = worker.wait_for("worker process died")
        assert died["status"] == -signal.SIGKILL
        assert died["restart_seconds"] == 1.0


def test_an_engine_that_can_not_come_back_now_gets_a_new_process_later(place: Place) -> None:
    model, away = place.folder / "tiny", place.folder / "away"
    with place.worker() as worker:
        worker.wait_for("worker ready")
        model.rename(away)
        psutil.Process(worker.engine_pid).send_signal(signal.SIGKILL)
        worker.wait_for("worker process died")
        away.rename(model)
        worker.wait_for("worker ready", count=2)


def test_a_worker_waits_for_redis(place: Place, valkey: Valkey) -> None:
    valkey.stop()
    with place.worker() as worker:
        assert "does not serve" in worker.wait_for("worker can not start")["reason"]
        valkey.start()
        worker.wait_for("worker ready")


def test_each_group_has_a_process_and_an_engine_of_its_own(place: Place) -> None:
    with place.worker("cpu:0;cpu:1") as worker, place.client() as client:
        worker.wait_for("worker ready", count=2)
        wait_until(lambda: len(client.workers()) == 2, seconds=20, what="both to announce themselves")
        assert [info.group for info in client.workers()] == ["cpu:0", "cpu:1"]
        engines = {event["pid"] for event in worker.events("engine started")}
        assert [psutil.Process(pid).cpu_affinity() for pid in sorted(engines)] in ([[0], [1]], [[1], [0]])
        worker.process.send_signal(signal.SIGTERM)
        assert worker.process.wait(60) == 0
        assert client.workers() == []


def test_nothing_outlives_a_supervisor_that_is_killed(place: Place) -> None:
    with place.worker() as worker:
        process, engine = child(worker), psutil.Process(worker.engine_pid)
        worker.process.kill()
        wait_until(
            lambda: not process.is_running() and not engine.is_running(),
            seconds=60,
            what="worker and engine to end",
        )


def test_one_line_says_what_is_wrong_with_the_groups(place: Place) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "worker", "up", "--groups", "tpu:0"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == [
        "error: no model: set LONGHAUL_MODEL to a checkpoint folder (invalid_settings)"
    ]
    ended = subprocess.run(
        [sys.executable, "-m", "worker", "up", "--groups", "tpu:0", "--model", str(place.folder)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.stderr.splitlines() == [
        "error: device group 'tpu:0': write cpu:0-3, cuda:0 or npu:0,1,2,3 (invalid_device_groups)"
    ]
