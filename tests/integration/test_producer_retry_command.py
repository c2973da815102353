"""`producer retry`, `results --merge`, `submit --reuse` and a shell's completion, as they are typed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.settings import Settings
from tests.integration.fleet_of_one import FleetOfOne
from tests.integration.typed import (
    NOWHERE,
    error_of,
    job_now,
    lines_of,
    prompts,
    run,
    spawned_to_its_end,
    working,
    write,
)

# Retrying, reusing


def test_retry_and_merge(settings: Settings) -> None:
    Path("in.jsonl").write_bytes(b'{"prompt":"a"}\n{"prompt":"fail"}\nno json\n{"prompt":"fail"}\n')
    job = run("submit", "in.jsonl", "--model", "m", "--max-tokens", "3").stdout.strip()
    assert "(unfinished): `producer watch" in error_of(run("retry", job))
    FleetOfOne(settings=settings).work(job_now(settings).spec)

    result = run("retry", job, "--max-tokens", "8", "--priority", "low", "--deadline", "1d")
    assert result.exit_code == 0
    assert f"2 of 4 lines of {job} are tried again" in result.stderr
    assert "1 lines are left out: they were refused at submission" in result.stderr
    again = job_now(settings).spec
    assert result.stdout == f"{again.id}\n"
    assert (again.sampling.max_tokens, again.priority, again.retry_of) == (8, "low", job)
    assert again.deadline is not None
    assert f"retry of {job}" in run("status", again.id).stdout

    assert "--partial" in error_of(run("results", job, "--merge"))
    assert run("results", job).stderr == "1 lines succeeded, 3 failed\n"
    FleetOfOne(settings=settings, answer=lambda line: "B" if line.line == 1 else None).work(again)
    merged = run("results", job, "--merge")
    assert [json.loads(row)["id"] for row in merged.stdout.splitlines()] == [
        f"{job}-{n}" for n in (1, 2, 3, 4)
    ]
    assert merged.stderr == "2 lines succeeded, 2 failed, 2 are from retries\n"
    counts = json.loads(run("results", job, "--merge", "-o", "out", "--json").stdout)
    assert counts == {"job": job, "succeeded": 2, "failed": 2, "missing": 0, "retried": 2}


def test_retry_with_nothing_to_do(settings: Settings) -> None:
    job = run("submit", write("in.jsonl", *prompts("a")), "--model", "m").stdout.strip()
    FleetOfOne(settings=settings).work(job_now(settings).spec)
    result = run("retry", job, "--wait")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == f"{job} has no lines to try again: no job was made\n"
    assert json.loads(run("retry", job, "--json").stdout) == {"job": None, "retry_of": job}


def test_retry_can_be_waited_for(settings: Settings) -> None:
    job = run("submit", write("in.jsonl", *prompts("fail", "fail")), "--model", "m").stdout.strip()
    FleetOfOne(settings=settings).work(job_now(settings).spec)
    assert run("retry", job, "--output", "out").exit_code == 2
    with working(settings):
        exit_status, out, errors = spawned_to_its_end("retry", job, "--wait", "--json", "-o", "out")
    assert exit_status == 1, errors
    assert json.loads(out.splitlines()[-1])["retry_of"] == job
    assert len(lines_of("out")) == 2
    assert f"producer results {job} --merge" in errors


@pytest.mark.usefixtures("settings")
def test_reuse_says_of_what() -> None:
    words = ["submit", write("in.jsonl", *prompts("a")), "--model", "m", "--reuse"]
    first = run(*words)
    assert "there is no earlier job of the same content" in first.stderr
    second = run(*words, "--json")
    assert f"finished lines of {first.stdout.strip()} are taken over" in second.stderr
    assert json.loads(second.stdout)["reuse_of"] == first.stdout.strip()


# At the shell


def completed(words: str, shell: str = "bash") -> str:
    """What the shell is offered where the cursor is at the end of these words."""
    environment = {
        **os.environ,
        "_PRODUCER_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
        "_TYPER_COMPLETE_ARGS": words,
    }
    return subprocess.run(
        [Path(sys.executable).parent / "producer"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.mark.usefixtures("settings")
def test_a_shell_completes_commands_and_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--install-completion" in run("--help").stdout
    job = run("submit", write("in.jsonl", *prompts("a")), "--model", "m").stdout.strip()
    assert sorted(completed("producer re").split()) == ["results", "retry"]
    assert completed("producer retry job").split() == [job]
    assert "queued, 1 lines, in.jsonl" in completed("producer retry job", "zsh")
    assert completed("producer retry other").split() == []
    monkeypatch.setenv("LONGHAUL_REDIS_URL", NOWHERE)
    assert completed("producer retry job").split() == []
