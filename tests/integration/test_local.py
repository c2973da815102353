"""`producer submit --local`: a whole fleet on this machine for one job, a real engine with a tiny model."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.services import wait_until
from tests.tiny_checkpoint import CONTEXT, make_tiny_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's own working directory, by which its processes are known."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LONGHAUL_LOCAL_DIR", str(tmp_path / "local"))
    return tmp_path


def submit(*words: str | Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "producer", "submit", "--local", "--groups", "cpu:0", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(*words: str | Path) -> tuple[int, str, str]:
    """Exit status, standard output and standard error."""
    process = submit(*words)
    out, errors = process.communicate(timeout=200)
    return process.returncode, out, errors


def left_running(place: Path) -> list[str]:
    """Commands of the processes that work for the test's folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("LONGHAUL_LOCAL_DIR") == str(place / "local"):
                found.append(" ".join(process.cmdline()))
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def write(name: str, *rows: object) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def test_every_line_succeeds(checkpoint: Path, place: Path) -> None:
    rows = [{"custom_id": f"c{number}", "prompt": f"text {number}"} for number in range(20)]
    status, out, errors = finished(
        write("in.jsonl", *rows), "--model", checkpoint, "--max-tokens", "4", "--output", "out.jsonl"
    )
    assert (status, out) == (0, ""), errors
    results = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [each["custom_id"] for each in results] == [f"c{number}" for number in range(20)]
    assert all(each["response"]["body"]["usage"]["completion_tokens"] <= 4 for each in results)
    assert "20 lines succeeded, 0 failed; in out.jsonl" in errors
    assert "c4" in errors  # the fifth of the table, and no more
    assert "c5" not in errors
    assert left_running(place) == []


def test_some_lines_fail(checkpoint: Path, place: Path) -> None:
    write("in.jsonl", {"prompt": "good"}, {"prompt": "x" * 2 * CONTEXT}, {"prompt": "bad", "max_tokens": 0})
    folder = place / "objects"
    status, _, errors = finished(
        "in.jsonl",
        "--model",
        checkpoint,
        "--max-tokens",
        "4",
        "-o",
        "out",
        "--errors",
        "bad",
        "--store",
        folder,
    )
    assert status == 2, errors
    assert len(Path("out").read_text().splitlines()) == 1
    codes = [json.loads(line)["error"]["code"] for line in Path("bad").read_text().splitlines()]
    assert codes == ["context_length_exceeded", "invalid_request"]
    assert [path.name for path in folder.glob("jobs/*/output/*")] == ["part-00000.jsonl"]


def test_the_job_fails(checkpoint: Path) -> None:
    status, out, errors = finished(
        write("in.jsonl", {"prompt": "x" * 2 * CONTEXT}), "--model", checkpoint, "--json"
    )
    assert status == 1, errors
    assert json.loads(out.splitlines()[-1])["state"] == "failed"


def damaged(checkpoint: Path, folder: Path, how: str) -> Path:
    """A copy of the checkpoint with something wrong."""
    shutil.copytree(checkpoint, folder)
    config, weights = folder / "config.json", folder / "model.safetensors"
    if how == "no config":
        config.unlink()
    elif how == "unknown architecture":
        config.write_text(json.dumps({**json.loads(config.read_text()), "architectures": ["FooForCausalLM"]}))
    elif how == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:-1000])
    return folder


@pytest.mark.parametrize(
    ("how", "part"),
    [
        ("no config", "has no config.json (no_model): "),
        ("unknown architecture", "FooForCausalLM"),
        ("truncated weights", "model.safetensors"),
    ],
)
def test_a_model_that_can_not_be_served_is_one_line(
    checkpoint: Path, place: Path, how: str, part: str
) -> None:
    model = damaged(checkpoint, place / "model", how)
    status, out, errors = finished(write("in.jsonl", {"prompt": "x"}), "--model", model, "-o", "out.jsonl")
    assert (status, out) == (1, "")
    (line,) = [line for line in errors.splitlines() if not line.startswith("job-")]
    assert line.startswith("error: ")
    assert part in line
    if how != "no config":
        assert "(local_run_failed): its log is " in line
        assert Path(line.rpartition("its log is ")[2]).is_file()
    assert not Path("out.jsonl").exists()
    assert left_running(place) == []


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["absent.jsonl"], "absent.jsonl: no such file (invalid_input)"),
        (["empty.jsonl"], "the input is empty (invalid_input)"),
        (["bad.jsonl", "--strict"], "1 of 1 lines are unusable (unusable_lines)"),
    ],
)
def test_an_input_that_can_not_be_run_starts_no_worker(
    checkpoint: Path, place: Path, words: list[str], part: str
) -> None:
    Path("empty.jsonl").touch()
    Path("bad.jsonl").write_text("bad\n")
    status, out, errors = finished(*words, "--model", checkpoint)
    assert (status, out) == (1, "")
    assert part in errors.splitlines()[-1]
    assert list(place.glob("local/runs/*/worker.log")) == []
    assert left_running(place) == []


def at_work(process: "subprocess.Popen[str]", place: Path) -> list[psutil.Process]:
    """Wait until the worker has begun the job; the producer's own children."""
    assert process.stderr is not None
    for line in process.stderr:
        if " in_progress: " in line:
            break
    assert left_running(place)
    return psutil.Process(process.pid).children()


def long_job(checkpoint: Path) -> "subprocess.Popen[str]":
    rows = [{"prompt": f"{number}", "ignore_eos": True} for number in range(500)]
    return submit(write("in.jsonl", *rows), "--model", checkpoint, "--max-tokens", "200", "-o", "out.jsonl")


def test_interrupting_stops_everything(checkpoint: Path, place: Path) -> None:
    process = long_job(checkpoint)
    at_work(process, place)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "is being stopped" in errors
    assert "Traceback" not in errors
    assert left_running(place) == []


def test_a_worker_that_dies_is_told(checkpoint: Path, place: Path) -> None:
    process = long_job(checkpoint)
    (worker,) = [child for child in at_work(process, place) if "worker" in child.cmdline()]
    worker.kill()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "error: the worker ended with status -9: " in errors.splitlines()[-1]
    wait_until(lambda: left_running(place) == [], seconds=60, what="the end of the worker's processes")


def test_nothing_outlives_a_producer_that_is_killed(checkpoint: Path, place: Path) -> None:
    process = long_job(checkpoint)
    at_work(process, place)
    process.kill()
    process.communicate()
    wait_until(lambda: left_running(place) == [], seconds=60, what="the end of everything it started")
