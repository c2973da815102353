"""The `producer` command as it is typed: what it prints, where, and its exit status."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.ledger import Ledger
from jobs.records import JobState
from jobs.settings import Settings
from tests.integration.fleet_of_one import FleetOfOne
from tests.integration.typed import (
    NOWHERE,
    error_of,
    job_now,
    lines_of,
    prompts,
    run,
    spawned,
    spawned_to_its_end,
    working,
    write,
)
from tests.services import free_port

# Submitting


@pytest.mark.usefixtures("settings")
def test_submit_prints_the_id_and_warns_where_nobody_serves_the_model() -> None:
    result = run("submit", write("in.jsonl", *prompts("a", "b")), "--model", "m")
    assert result.exit_code == 0
    assert result.stdout.startswith("job-")
    assert result.stdout.count("\n") == 1
    (warning,) = result.stderr.splitlines()
    assert "no living worker serves m" in warning


@pytest.mark.usefixtures("settings")
def test_submit_as_json() -> None:
    write("a.jsonl", *prompts("a", "b"))
    write("b.jsonl", *prompts("c"))
    result = run("submit", "*.jsonl", "--model", "m", "--json")
    read = json.loads(result.stdout)
    assert (read["lines"], read["rejected"], read["shards"], read["model"]) == (3, 0, 2, "m")


def test_options_reach_the_job(settings: Settings) -> None:
    options = (
        "--max-tokens 7 --temperature 0.5 --top-p 0.9 --top-k 4 --seed 3 --stop A --stop B --priority high "
        "--min-tokens 2 --min-p 0.1 --repetition-penalty 1.1 --presence-penalty -1 --frequency-penalty 0.25 "
        "--deadline 2031-05-01T18:00Z"
    )
    words = ["--model", "m", "--system", "S", "--prompt-template", "T {text}", *options.split()]
    assert run("submit", "-", *words, given=b'{"prompt":"x"}').exit_code == 0
    spec = job_now(settings).spec
    assert (spec.system, spec.prompt_template, spec.priority) == ("S", "T {text}", "high")
    sampling = spec.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (7, 0.5, 0.9)
    assert (sampling.top_k, sampling.seed, sampling.stop) == (4, 3, ("A", "B"))
    assert (sampling.min_tokens, sampling.min_p, sampling.repetition_penalty) == (2, 0.1, 1.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (-1.0, 0.25)
    assert (spec.source, spec.deadline) == ("-", 1_935_424_800.0)


@pytest.mark.usefixtures("settings")
def test_unusable_lines_are_shown_and_do_not_stop_the_others() -> None:
    Path("in.jsonl").write_bytes(b'{"prompt":"x"}\n' + b"bad\n" * 30)
    result = run("submit", "in.jsonl", "--model", "m")
    assert result.exit_code == 0
    assert "30 of 31 lines are unusable" in result.stderr
    assert "  line 2: invalid_json: " in result.stderr
    assert "  line 21: invalid_json: " in result.stderr
    assert "  line 22" not in result.stderr
    assert "and 10 more" in result.stderr


def test_strict_refuses_the_whole(settings: Settings) -> None:
    Path("in.jsonl").write_bytes(b'{"prompt":"x"}\n{"prompt":"x","max_tokens":0}\n\n')
    result = run("submit", "in.jsonl", "--model", "m", "--strict")
    assert result.exit_code == 1
    assert result.stdout == ""
    *listed, error = result.stderr.splitlines()
    assert [row.split(":")[0] for row in listed] == ["  line 2", "  line 3"]
    assert error.startswith("error: 2 of 3 lines are unusable (unusable_lines): ")
    assert Ledger.open(settings).jobs() == []


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["absent.jsonl"], "error: absent.jsonl: no such file (invalid_input): check the path"),
        (["empty.jsonl"], "error: the input is empty (invalid_input): give at least one line of JSON"),
        (["."], "(invalid_input)"),
        (["damaged.gz"], "(invalid_input)"),
        (["full.jsonl", "--model", "a/b"], "not a model name"),
        (["full.jsonl", "--prompt-template", "no place"], "(invalid_option)"),
        (["full.jsonl", "--deadline", "soon"], "(invalid_option): give a duration such as 90m"),
        (["full.jsonl", "--deadline", "2001-01-01"], "error: the deadline has passed (invalid_option)"),
        (["ftp://host/in.jsonl"], "(invalid_settings)"),
    ],
)
def test_an_input_that_can_not_be_submitted(words: list[str], error: str) -> None:
    Path("empty.jsonl").touch()
    Path("damaged.gz").write_bytes(b"\x1f\x8bxxxxxxxxxxxxxx")
    write("full.jsonl", *prompts("x"))
    assert error in error_of(run("submit", "--model", "m", *words))


@pytest.mark.usefixtures("settings")
def test_a_model_must_be_known() -> None:
    assert "(no_model)" in error_of(run("submit", write("in.jsonl", *prompts("x"))))


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize(
    "words",
    [
        ["--output", "out.jsonl"],
        ["--errors", "errors.jsonl"],
        ["--store", "folder"],
        ["--groups", "cpu:0"],
        ["--wait", "--json", "--output", "-"],
        ["--max-tokens", "0"],
        ["--min-p", "2"],
        ["--top-p", "0"],
        ["--temperature", "3"],
        ["--stop", ""],
        ["--priority", "urgent"],
    ],
)
def test_mistyped_commands_end_with_2(words: list[str]) -> None:
    result = run("submit", write("in.jsonl", *prompts("x")), "--model", "m", *words)
    assert result.exit_code == 2
    assert result.stdout == ""


# Services away


@pytest.mark.parametrize(
    "words",
    [
        ["submit", "in.jsonl", "--model", "m"],
        ["status", "job-1"],
        ["watch", "job-1"],
        ["list"],
        ["cancel", "job-1"],
        ["retry", "job-1"],
    ],
    ids=lambda words: words[0],
)
def test_redis_away_is_one_line(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LONGHAUL_REDIS_URL", NOWHERE)
    write("in.jsonl", *prompts("x"))
    exit_status, out, errors = spawned_to_its_end(*words)
    assert (exit_status, out) == (1, "")
    (line,) = errors.splitlines()
    assert line.startswith("error: Redis at ")
    assert "(ledger_unavailable): check that Redis runs" in line
    assert not Path("longhaul-store/jobs").exists()


def test_the_store_away_is_one_line(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGHAUL_STORE_URL", "s3://bucket/prefix")
    monkeypatch.setenv("LONGHAUL_S3_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("LONGHAUL_S3_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("LONGHAUL_S3_SECRET_ACCESS_KEY", "secret")
    for words in (["submit", write("in.jsonl", *prompts("x")), "--model", "m"], ["results", "job-1"]):
        line = error_of(run(*words))
        assert "(store_unavailable): check LONGHAUL_STORE_URL" in line
        assert "secret" not in line
    assert Ledger.open(settings).jobs() == []


def test_a_store_that_can_not_be_written_is_one_line(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("file").touch()
    monkeypatch.setenv("LONGHAUL_STORE_URL", f"file://{Path('file').resolve()}/store")
    line = error_of(run("submit", write("in.jsonl", *prompts("x")), "--model", "m"))
    assert "(store_unavailable)" in line
    assert Ledger.open(settings).jobs() == []


def test_settings_that_make_no_sense_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LONGHAUL_SHARD_LINES", "0")
    assert "LONGHAUL_SHARD_LINES" in error_of(run("list"))


# Waiting


@pytest.mark.parametrize(
    ("texts", "exit_status", "state"),
    [
        (["a", "b", "c"], 0, JobState.COMPLETED),
        (["a", "fail", "c"], 2, JobState.COMPLETED),
        (["fail", "fail"], 1, JobState.FAILED),
    ],
)
def test_waiting_ends_with_the_jobs_own_status(
    settings: Settings, texts: list[str], exit_status: int, state: JobState
) -> None:
    with working(settings):
        words = ["--model", "m", "--wait", "-o", "out", "--errors", "bad"]
        ended, out, errors = spawned_to_its_end("submit", write("in.jsonl", *prompts(*texts)), *words)
    assert ended == exit_status, errors
    assert out == ""
    assert job_now(settings).state is state
    assert f" {state}: " in errors
    answers = [
        json.loads(row)["response"]["body"]["choices"][0]["message"]["content"] for row in lines_of("out")
    ]
    assert answers == [text for text in texts if text != "fail"]
    assert len(lines_of("bad")) == texts.count("fail")


def test_waiting_with_results_on_standard_output(settings: Settings) -> None:
    with working(settings):
        words = ["submit", write("in.jsonl", *prompts("a", "b")), "--model", "m", "--wait", "-o", "-"]
        exit_status, out, errors = spawned_to_its_end(*words)
    assert exit_status == 0, errors
    assert [json.loads(row)["id"].rpartition("-")[2] for row in out.splitlines()] == ["1", "2"]


def test_watch_as_json(settings: Settings) -> None:
    job = run("submit", write("in.jsonl", *prompts("a", "fail")), "--model", "m").stdout.strip()
    FleetOfOne(settings=settings).work(job_now(settings).spec)
    result = run("watch", job, "--json")
    assert result.exit_code == 2
    last = json.loads(result.stdout.splitlines()[-1])
    assert (last["state"], last["succeeded"], last["failed"]) == ("completed", 1, 1)


def test_interrupting_leaves_the_job_running(settings: Settings) -> None:
    with spawned("submit", write("in.jsonl", *prompts("a")), "--model", "m", "--wait") as process:
        assert process.stderr is not None
        for row in process.stderr:
            if b" queued: " in row:
                break
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=30)[1].decode()
    assert process.returncode == 130
    status = job_now(settings)
    assert status.state is JobState.QUEUED
    assert f"producer watch {status.spec.id}" in errors
    assert "Traceback" not in errors


# Looking, collecting, cancelling


def test_status_and_list(settings: Settings) -> None:
    assert "there are no jobs" in run("list").stderr
    job = run("submit", write("in.jsonl", *prompts("a", "b", "c")), "--model", "m").stdout.strip()
    FleetOfOne(settings=settings).work(job_now(settings).spec, range(1))
    assert "2 of 3 done" in run("status", job).stdout
    read = json.loads(run("status", job, "--json").stdout)
    assert (read["job"], read["state"], read["done"], read["lines"]) == (job, "in_progress", 2, 3)
    assert job in run("list").stdout
    assert json.loads(run("list", "--json").stdout)["job"] == job


def test_results(settings: Settings) -> None:
    job = run("submit", write("in.jsonl", *prompts("a", "fail", "c")), "--model", "m").stdout.strip()
    spec = job_now(settings).spec
    FleetOfOne(settings=settings).work(spec, range(1))
    assert "(unfinished)" in error_of(run("results", job))
    partial = run("results", job, "--partial")
    assert partial.exit_code == 0
    assert len(partial.stdout.splitlines()) == 2
    assert "1 have no result" in partial.stderr

    FleetOfOne(settings=settings).work(spec, range(1, 2))
    assert len(run("results", job).stdout.splitlines()) == 3
    assert run("results", job, "-o", "out", "--errors", "bad").exit_code == 0
    assert (len(lines_of("out")), len(lines_of("bad"))) == (2, 1)
    assert "(system_error)" in error_of(run("results", job, "-o", "no/such/folder/out"))


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize("command", ["status", "watch", "results", "cancel", "retry"])
def test_an_unknown_job(command: str) -> None:
    assert "(unknown_job): `producer list` shows the jobs" in error_of(
        run(command, "job-20260101-000000-abcdef")
    )
    assert "not a job id" in error_of(run(command, "../escape"))


def test_cancel(settings: Settings) -> None:
    job = run("submit", write("in.jsonl", *prompts("a")), "--model", "m").stdout.strip()
    result = run("cancel", job)
    assert result.exit_code == 0
    assert "is called off" in result.stderr
    FleetOfOne(settings=settings).end()
    assert json.loads(run("cancel", job, "--json").stdout) == {"job": job, "state": "cancelled"}


def test_cancel_while_the_store_is_away(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    run("submit", write("in.jsonl", *prompts("a")), "--model", "m")
    Path("file").touch()
    monkeypatch.setenv("LONGHAUL_STORE_URL", f"file://{Path('file').resolve()}/store")
    result = run("cancel", job_now(settings).spec.id)
    assert result.exit_code == 0
    warning, said = result.stderr.splitlines()
    assert warning.startswith("warning: should Redis lose the job, ")
    assert "is called off" in said
    assert job_now(settings).outcome == "cancelled"


def test_a_reader_that_leaves_is_no_traceback(settings: Settings) -> None:
    job = run("submit", write("in.jsonl", *prompts(*["x" * 2000] * 200)), "--model", "m").stdout.strip()
    FleetOfOne(settings=settings).work(job_now(settings).spec)
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "producer", "results", job], stdout=writing, stderr=subprocess.PIPE
    )
    os.close(writing)
    assert os.read(reading, 100)
    os.close(reading)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (1, b"")


def test_every_command_has_help() -> None:
    for words in ([], ["submit"], ["retry"], ["status"], ["watch"], ["list"], ["results"], ["cancel"]):
        result = run(*words, "--help")
        assert result.exit_code == 0
        assert "Usage" in result.stdout
