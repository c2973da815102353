"""The supervisor's promises, with real worker processes: restarts, drains, reports, and no orphans."""

import os
import pty
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from producer.client import Client
from producer.submission import Order
from tests.chaos.fleet import injected
from tests.fleet import Event, Place, Worker
from tests.services import Valkey, kill, reaper, wait_until
from tests.tiny_checkpoint import make_tiny_checkpoint

pytestmark = pytest.mark.slow

TWO_ECHOES = "echo:0;echo:1"


@pytest.fixture
def place(valkey: Valkey, tmp_path: Path) -> Place:
    model = make_tiny_checkpoint(tmp_path / "tiny")
    return Place.at(tmp_path, redis=valkey.url, model=model)


@pytest.fixture
def echoes(valkey: Valkey, tmp_path: Path) -> Place:
    """For groups that answer without a model, at a pace at which a line takes some seconds."""
    return Place.at(tmp_path, redis=valkey.url, model=tmp_path, model_name="echo", echo_step_seconds="0.05")


def child(worker: Worker) -> psutil.Process:
    worker.wait_for("worker ready")
    return psutil.Process(worker.events("worker process started")[-1]["pid"])


def children(worker: Worker, count: int) -> list[psutil.Process]:
    worker.wait_for("worker ready", count=count)
    return [psutil.Process(event["pid"]) for event in worker.events("worker process started")]


def submit(client: Client, folder: Path, *, lines: int, length: int) -> str:
    """A job of so many lines, each of so many tokens."""
    path = folder / "lines.jsonl"
    contents = (f"{number:0{length}d}" for number in range(lines))
    path.write_text("".join(f'[{{"role": "user", "content": "{text}"}}]\n' for text in contents))
    return client.submit(Order(sources=(str(path),), model="echo")).spec.id


def standing(worker: Worker, group: str) -> Event:
    """The group in the latest event of the fleet."""
    found: Event = {each["group"]: each for each in worker.events("fleet")[-1]["groups"]}[group]
    return found


def in_state(worker: Worker, state: str) -> list[Event]:
    """Groups in this state, in all events of the fleet so far."""
    return [each for event in worker.events("fleet") for each in event["groups"] if each["state"] == state]


def lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


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


def test_a_group_finds_its_devices_and_its_profile_in_its_environment(echoes: Place) -> None:
    profile = echoes.folder / "chip.env"
    profile.write_text("LONGHAUL_CHIP=800i-a2\nHCCL_BUFFSIZE=120\nTASK_QUEUE_ENABLE=1\n")
    make_tiny_checkpoint(echoes.folder / "tiny")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # keeps a worker waiting before it loads anything
        given = {
            "LONGHAUL_MODEL": str(echoes.folder / "tiny"),
            "LONGHAUL_REDIS_URL": f"redis://127.0.0.1:{silent.getsockname()[1]}/0",
            "LONGHAUL_PROFILE": str(profile),
            "HCCL_BUFFSIZE": "64",
        }
        here = replace(echoes, environment={**echoes.environment, **given})
        with here.worker("npu:0,1;npu:2,3;echo:0") as worker:
            worker.wait_for("worker process started", count=3)
            started = {event["group"]: event["pid"] for event in worker.events("worker process started")}
            found = {group: psutil.Process(pid).environ() for group, pid in started.items()}
    first, second, echo = (found[group] for group in ("npu:0,1", "npu:2,3", "echo:0"))
    assert (first["ASCEND_RT_VISIBLE_DEVICES"], first["HCCL_IF_BASE_PORT"]) == ("0,1", "60000")
    assert (second["ASCEND_RT_VISIBLE_DEVICES"], second["HCCL_IF_BASE_PORT"]) == ("2,3", "60032")
    for group in (first, second):
        assert (group["TASK_QUEUE_ENABLE"], group["HCCL_BUFFSIZE"]) == ("1", "64")
    assert "TASK_QUEUE_ENABLE" not in echo
    assert "ASCEND_RT_VISIBLE_DEVICES" not in echo


def test_the_fleet_is_reported_and_counts_go_on_after_a_restart(echoes: Place) -> None:
    with echoes.worker(TWO_ECHOES) as worker, echoes.client() as client:
        processes = children(worker, 2)
        submit(client, echoes.folder, lines=3000, length=20)

        def serves(group: str, lines: int) -> bool:
            now = standing(worker, group)
            return now["lines"] > lines and now["shards"] > 0

        for group in ("echo:0", "echo:1"):
            wait_until(lambda group=group: serves(group, 0), seconds=60, what=f"lines of {group}")  # type: ignore[misc]
            now = standing(worker, group)
            assert now["state"] == "serving"
            assert (now["restarts"], now["engine_starts"]) == (0, 1)
            assert now["tokens"] >= 20 * now["lines"]
            assert now["tokens_per_second"] > 0
        processes[0].send_signal(signal.SIGKILL)
        wait_until(lambda: in_state(worker, "restarting") != [], seconds=20, what="the death to be reported")
        dead = in_state(worker, "restarting")[0]
        assert (dead["pid"], dead["shards"], dead["tokens_per_second"]) == (None, 0, 0.0)
        wait_until(lambda: serves("echo:0", dead["lines"]), seconds=60, what="lines after the restart")
        again = standing(worker, "echo:0")
        assert (again["restarts"], again["engine_starts"]) == (1, 2)
        for count in ("lines", "tokens"):
            told = [each["groups"][0][count] for each in worker.events("fleet")]
            assert told == sorted(told)


def test_a_second_sigterm_hands_back_at_once(echoes: Place) -> None:
    with echoes.worker(TWO_ECHOES) as worker, echoes.client() as client:
        worker.wait_for("worker ready", count=2)
        job = submit(client, echoes.folder, lines=32, length=4000)
        worker.wait_for("shard begun", count=4)
        worker.process.send_signal(signal.SIGTERM)
        worker.wait_for("draining", count=2)
        assert worker.process.poll() is None
        worker.process.send_signal(signal.SIGTERM)
        # Each line takes minutes, and so does the grace.
        assert worker.process.wait(30) == 0
        worker.wait_for("shard handed back", count=4)
        assert client.status(job).done_lines == 0
        assert worker.events("worker does not end: killed") == []


def test_what_does_not_end_on_a_second_sigterm_is_killed(echoes: Place) -> None:
    with echoes.worker(TWO_ECHOES) as worker:
        stuck, other = children(worker, 2)
        stuck.send_signal(signal.SIGSTOP)
        worker.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not lives(other), seconds=30, what="the other to end")
        assert lives(stuck)
        worker.process.send_signal(signal.SIGTERM)
        assert worker.process.wait(30) == 0
        assert not lives(stuck)
        assert [event["group"] for event in worker.events("worker does not end: killed")] == ["echo:0"]


def test_a_drain_ends_well_though_redis_is_gone_at_its_very_end(echoes: Place) -> None:
    (echoes.folder / "points.worker").write_text("ledger.close:before:1:fail\n")
    failing = replace(echoes, environment={**echoes.environment, **injected(echoes.folder, {})})
    with failing.worker("echo:0") as worker:
        worker.wait_for("worker ready")
        worker.process.send_signal(signal.SIGTERM)
        assert worker.process.wait(60) == 0
        assert worker.events("connection to Redis not closed: it ends with the process") != []
        assert worker.events("worker can not start") == []
        assert worker.events("worker ended") != []


def test_a_sigterm_reaches_a_group_that_waits_for_its_restart(echoes: Place) -> None:
    with echoes.worker("echo:0") as worker:
        child(worker).send_signal(signal.SIGKILL)
        worker.wait_for("worker process died")
        worker.process.send_signal(signal.SIGTERM)
        assert worker.process.wait(30) == 0


def test_nothing_outlives_a_supervisor_that_is_killed(place: Place) -> None:
    with place.worker() as worker:
        process, engine = child(worker), psutil.Process(worker.engine_pid)
        worker.process.kill()
        wait_until(
            lambda: not process.is_running() and not engine.is_running(),
            seconds=60,
            what="worker and engine to end",
        )


class AtTerminal:
    """`worker up` at a terminal of its own."""

    def __init__(self, place: Place, groups: str) -> None:
        self._ours, theirs = pty.openpty()
        console = {
            "TERM": "xterm-256color",
            "LONGHAUL_LOG_FORMAT": "console",
            "LONGHAUL_DEVICE_GROUPS": groups,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "worker", "up"],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, **place.environment, **console},
            start_new_session=True,
        )
        reaper().guard(self.process.pid)
        os.close(theirs)
        self._written = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def written(self) -> str:
        return self._written.decode(errors="replace")

    def _read(self) -> None:
        with suppress(OSError):  # the terminal's end
            while chunk := os.read(self._ours, 65536):
                self._written += chunk

    def close(self) -> None:
        kill(self.process)
        self._reader.join(10)
        os.close(self._ours)


@contextmanager
def at_terminal(place: Place, groups: str) -> Iterator[AtTerminal]:
    terminal = AtTerminal(place, groups)
    try:
        yield terminal
    finally:
        terminal.close()


def test_at_a_terminal_there_is_a_table_and_the_logs_of_all_processes(echoes: Place) -> None:
    with at_terminal(echoes, TWO_ECHOES) as terminal:
        wait_until(lambda: terminal.written.count("worker ready") == 2, seconds=60, what="the workers' logs")
        wait_until(lambda: "serving" in terminal.written, seconds=20, what="the table")
        assert "tokens/s" in terminal.written
        terminal.process.send_signal(signal.SIGINT)  # Ctrl-C
        assert terminal.process.wait(60) == 0
        assert terminal.written.count("worker process ended") == 2
        assert "Traceback" not in terminal.written


def test_workers_end_with_the_terminals_supervisor_as_well(echoes: Place) -> None:
    with at_terminal(echoes, "echo:0") as terminal:
        wait_until(lambda: "serving" in terminal.written, seconds=60, what="the table")
        (process,) = psutil.Process(terminal.process.pid).children()
        (engine,) = process.children()
        terminal.process.kill()
        terminal.process.wait()
        wait_until(
            lambda: not lives(process) and not lives(engine), seconds=60, what="worker and engine to end"
        )


def up(*options: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "worker", "up", *options],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **{f"LONGHAUL_{name.upper()}": value for name, value in settings.items()}},
    )


def test_one_line_says_what_is_wrong_before_anything_starts(place: Place) -> None:
    refused = {
        ("cpu:0",): "no model: set LONGHAUL_MODEL to a checkpoint folder (invalid_settings)",
        ("tpu:0",): (
            "device group 'tpu:0': write cpu:0-3, cuda:0, npu:0,1,2,3 or echo:0 (invalid_device_groups)"
        ),
        ("npu:0", "--model", str(place.folder)): (
            f"can not read {place.folder}/config.json: No such file or directory; is this a model folder? "
            "(invalid_checkpoint)"
        ),
    }
    for (groups, *options), line in refused.items():
        ended = up("--groups", groups, *options)
        assert (ended.returncode, ended.stderr.splitlines()) == (1, [f"error: {line}"])


def test_a_300i_duo_and_a_bad_profile_are_checked_before_anything_starts(place: Place) -> None:
    profile = place.folder / "chip.env"
    profile.write_text("LONGHAUL_CHIP=300i-duo\n")
    model = str(place.folder / "tiny")
    ended = up("--groups", "npu:0,1;npu:2", model=model, profile=str(profile))
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: npu:2: a 300I DUO needs two visible cores at least")
    profile.write_text("LONGHAUL_CHIP=300i-duo\nA B\n")
    ended = up("--groups", "cpu:0", model=model, profile=str(profile))
    assert ended.stderr.startswith(f"error: {profile}, line 2: 'A B': write NAME=VALUE")
    assert len(ended.stderr.splitlines()) == 1
