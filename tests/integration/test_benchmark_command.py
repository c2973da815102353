"""`model benchmark` for real, on a tiny checkpoint: what it shows, what it leaves, and what it refuses."""

import csv
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import psutil
import pytest
from typer.testing import CliRunner

from model import memory, shapes
from model.benchmark.report import COLUMNS
from model.benchmark.search import attempt
from model.benchmark.workload import Lengths
from model.cli import app
from model.config import EngineConfig
from model.errors import PromptTooLong
from model.llm import LLM
from model.request import SamplingParams
from tests.services import wait_until
from tests.tiny_checkpoint import CONTEXT, make_tiny_checkpoint

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
SHAPE = {
    **shapes.SHAPES["internlm2-1_8b"],
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 320,
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("benchmark") / "tiny")


def command(where: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "model.cli", "benchmark", *map(str, arguments)],
        text=True, capture_output=True, check=False, cwd=where, env=ENVIRONMENT, timeout=240,
    )  # fmt: skip


def results(parent: Path) -> tuple[Path, dict[str, Any], list[dict[str, str]]]:
    """The only run's folder, its JSON and its CSV; the picture is well-formed."""
    (folder,) = parent.iterdir()
    ET.parse(folder / "plot.svg")  # noqa: S314 - our own
    with (folder / "results.csv").open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert tuple(reader.fieldnames or ()) == COLUMNS
    return folder, json.loads((folder / "results.json").read_text()), rows


def test_performance(tiny: Path, tmp_path: Path) -> None:
    arguments = ["[[24,6],[8,1]]", "--batch-size", 1, "--batch-size", 3, "--threads", 1, "--block-size", 4]
    done = command(tmp_path, tiny, "performance", *arguments)
    assert done.returncode == 0, done.stderr
    folder, document, rows = results(tmp_path / "benchmark-results")
    assert folder.name.endswith("-performance-tiny")
    assert [(row["Batchsize"], row["In_seq"], row["Out_seq"]) for row in rows] == [
        ("1", "24", "6"), ("1", "8", "1"), ("3", "24", "6"), ("3", "8", "1"),
    ]  # fmt: skip
    for row, one in zip(rows, document["rounds"], strict=True):
        out = int(row["Out_seq"])
        total, prefill = float(row["Total time(s)"]), float(row["Prefill all time(ms)"])
        decode = float(row["Non-first token time(ms)"])
        assert float(row["Throughput(Tokens/s)"]) == pytest.approx(int(row["Batchsize"]) * out / total)
        assert 0 < prefill + decode * (out - 1) <= 1000 * total
        assert (decode > 0) == (out > 1)
        assert one["peak_running"] == one["batch_size"]
        assert one["cached_tokens"] == 0, "no round may find its prompts in the cache"
        assert 0 <= one["cache_use"] <= 1
    assert [bool(row["E2E Throughput Average(Tokens/s)"]) for row in rows] == [False, True, False, True]
    assert document["engine"]["max_num_seqs"] == 3
    assert document["engine"]["max_model_len"] == 30
    assert (document["weights"], document["dtype"]) == ("checkpoint", "float32")
    assert "tiny, performance" in done.stdout
    assert done.stderr.startswith("24→6 ×1: ")
    assert "\x1b" not in done.stdout + done.stderr


def test_a_batch_that_the_cache_does_not_hold_has_failed(tiny: Path, tmp_path: Path) -> None:
    done = command(tmp_path, tiny, "performance", "[[24,6]]", "--batch-size", 12, "--kv-cache", "40KB")
    assert done.returncode == 1
    _, _, (row,) = results(tmp_path / "benchmark-results")
    assert row["Total time(s)"].endswith("of 12 sequences ran at once: raise --kv-cache (or --max-num-seqs)")
    assert row["Non-first token time(ms)"] == ""


def test_a_round_that_is_too_long_fails_alone(tiny: Path, tmp_path: Path) -> None:
    done = command(tmp_path, tiny, "performance", f"[[{CONTEXT},8],[8,2]]", "--json", "--output-dir", "out")
    assert done.returncode == 1
    assert "exceed the context" in done.stderr
    _, document, rows = results(tmp_path / "out")
    assert json.loads(done.stdout) == document
    assert "exceed the context" in rows[0]["Total time(s)"]
    assert float(rows[1]["Throughput(Tokens/s)"]) > 0


def test_the_largest_batch_that_the_cache_holds(tiny: Path, tmp_path: Path) -> None:
    """A token takes 256 bytes (key and value, 2 layers, 2 heads, 8 floats); room for six of 32 tokens."""
    arguments = ["[[24,8]]", "[[1,16]]", "--limit-ms", 1e9, "--kv-cache", 6 * 32 * 256, "--block-size", 8]
    done = command(tmp_path, tiny, "performance-maxbs", *arguments, "--threads", 1)
    assert done.returncode == 0, done.stderr
    folder, document, rows = results(tmp_path / "benchmark-results")
    (search,) = document["searches"]
    assert [one["batch_size"] for one in search["tries"]] == [8, 4, 6, 7]
    assert [one["passed"] for one in search["tries"]] == [False, True, True, False]
    assert search["largest_batch"] == 6
    assert "24→8: the largest batch is 6" in done.stderr
    assert rows[2]["Batchsize"] == "6"
    with (folder / "final.csv").open(newline="") as file:
        (final,) = csv.DictReader(file)
    assert final == rows[2]


def test_no_batch_is_fast_enough(tiny: Path, tmp_path: Path) -> None:
    done = command(tmp_path, "performance-maxbs", tiny, "[[8,3]]", "[[1,2]]", "--limit-ms", 0, "--json")
    assert done.returncode == 0, done.stderr
    (search,) = json.loads(done.stdout)["searches"]
    assert search["largest_batch"] == 0
    assert [one["batch_size"] for one in search["tries"]] == [1]


def test_a_try_that_can_not_run_is_a_failed_try(tiny: Path) -> None:
    config = EngineConfig(path=tiny, kv_cache_bytes=100, num_threads=1)
    one = attempt(config, "tiny", 2, Lengths(8, 2), seed=0)
    assert one.error is not None
    assert "KV cache" in one.error
    with pytest.raises(PromptTooLong):
        attempt(EngineConfig(path=tiny, num_threads=1), "tiny", 1, Lengths(CONTEXT, 2), seed=0)


def test_an_interrupted_search_keeps_its_tries(tiny: Path, tmp_path: Path) -> None:
    words = ["benchmark", str(tiny), "performance-maxbs", "[[8,3]]", "[[1,1000]]", "--threads", "1"]
    with subprocess.Popen(
        [sys.executable, "-m", "model.cli", *words],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr
        assert process.stderr.readline().startswith("8→3 ×500: ")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert "interrupted" in process.stderr.read()
    (folder,) = (tmp_path / "benchmark-results").iterdir()
    with (folder / "results.csv").open(newline="") as file:
        assert [row["Batchsize"] for row in csv.DictReader(file)] == ["500"]


def test_a_try_that_is_killed_is_a_failed_try(tiny: Path) -> None:
    config = EngineConfig(path=tiny, num_threads=1)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(attempt, config, "tiny", 64, Lengths(100, 100), seed=0)

        def tries() -> list[psutil.Process]:
            return [one for one in psutil.Process().children() if "model.benchmark.attempt" in one.cmdline()]

        wait_until(lambda: bool(tries()), seconds=60, what="the try's process")
        tries()[0].kill()
        one = future.result(60)
    assert one.error == "the process was killed by SIGKILL: out of memory?"
    assert (one.batch_size, one.input, one.output) == (64, 100, 100)


def test_throughput_of_random_prompts(tiny: Path, tmp_path: Path) -> None:
    done = command(
        tmp_path, tiny, "throughput", "--num-prompts", 9, "--input-len", 20, "--output-len", 5,
        "--max-num-seqs", 4, "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder, document, rows = results(tmp_path / "benchmark-results")
    figures = document["figures"]
    assert json.loads(done.stdout) == document
    assert (figures["requests"], figures["input_tokens"], figures["output_tokens"]) == (9, 180, 45)
    assert figures["peak_running"] == 4
    assert figures["cached_tokens"] == 0
    assert 0 < figures["first_token_seconds"]["p50"] < figures["latency_seconds"]["p99"] <= figures["seconds"]
    assert (rows[0]["In_seq"], rows[0]["Out_seq"]) == ("20.0", "5.0")
    with (folder / "requests.csv").open(newline="") as file:
        requests = list(csv.DictReader(file))
    assert [int(one["output_tokens"]) for one in requests] == [5] * 9


def test_throughput_of_a_trace_and_of_a_dataset(tiny: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        f"2023-11-16 18:15:46.68,12,3\n2023-11-16 18:15:50.99,{CONTEXT},3\n2023-11-16 18:15:51.22,30,1\n"
    )
    done = command(tmp_path, tiny, "throughput", "--trace", trace, "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)["figures"]
    assert (figures["requests"], figures["dropped"], figures["input_tokens"]) == (2, 1, 42)
    assert figures["output_tokens"] == 4
    dataset = tmp_path / "dialogues.jsonl"
    dataset.write_text('{"prompt": "hello"}\n[{"role": "user", "content": "you"}]\n{"prompt": "never"}\n')
    options = ["--dataset", dataset, "--num-prompts", 2, "--output-len", 7, "--ignore-eos"]
    done = command(tmp_path, tiny, "throughput", *options)
    assert done.returncode == 0, done.stderr
    assert "output tokens" in done.stdout
    assert "14, " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["performance", "[[8,2]]"], 2, "give one CKPT"),
        (["TINY", "performance", "[[8,2]]", "--dry-run-weights", "internlm2-7b"], 2, "give one CKPT"),
        (["TINY", "performance", "[8,2]"], 2, "is not a list of pairs"),
        (["TINY", "performance-maxbs", "[[8,2]]", "[[1,2],[1,2]]"], 2, "1 pairs of lengths and 2 ranges"),
        (["TINY", "throughput", "--trace", "x", "--input-len", "3"], 2, "a --trace has its own lengths"),
        (["TINY", "throughput", "--ignore-eos"], 2, "--ignore-eos is for a --dataset"),
        (["TINY", "sprint"], 2, "No such command"),
        (
            ["TINY", "throughput", "--trace", "absent.csv"],
            1,
            "error[invalid_request]: can not read absent.csv",
        ),
        (["absent", "throughput"], 1, "error[invalid_checkpoint]: "),
        (
            ["--dry-run-weights", "llama-405b", "throughput"],
            1,
            "error[invalid_settings]: shape 'llama-405b' is",
        ),
    ],
)
def test_what_is_wrong_is_said(
    tiny: Path, tmp_path: Path, arguments: list[str], status: int, message: str
) -> None:
    words = [str(tiny) if word == "TINY" else word for word in arguments]
    done = command(tmp_path, *words)
    assert done.returncode == status
    assert message in " ".join(done.stderr.replace("│", "").split())
    assert not list(tmp_path.glob("benchmark-results/*"))


def test_a_folder_that_can_not_be_made_is_said_before_the_work(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = command(tmp_path, tiny, "throughput", "--output-dir", "file")
    assert done.returncode == 1
    assert done.stderr.startswith("error[invalid_settings]: can not make a folder in file: ")


def test_made_up_weights_of_a_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shapes.SHAPES, "internlm2-tiny", SHAPE)  # type: ignore[arg-type]
    words = [
        "performance",
        "[[8,3]]",
        "--dry-run-weights",
        "internlm2-tiny",
        "--output-dir",
        str(tmp_path / "out"),
    ]
    done = CliRunner().invoke(app, ["benchmark", *words])
    assert done.exit_code == 0, done.output
    assert "no tokenizer: the time to make text of tokens is not in the figures" in done.output
    _, document, rows = results(tmp_path / "out")
    assert document["weights"] == "random"
    assert rows[0]["Model"] == document["model"] == "internlm2-tiny"
    monkeypatch.setattr(memory, "available_memory", lambda: 10_000)
    refused = CliRunner().invoke(app, ["benchmark", *words])
    assert refused.exit_code == 1
    assert "error[invalid_settings]: internlm2-tiny has 0.0 billion weights" in refused.output


def test_ranks_with_made_up_weights_have_slices_of_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(shapes.SHAPES, "internlm2-tiny", SHAPE)  # type: ignore[arg-type]
    folder = shapes.write("internlm2-tiny", tmp_path / "shape")
    answers = []
    for world in (1, 2, 4):
        options = {"tensor_parallel_size": world, "dtype": "float32", "num_threads": 1, "max_model_len": 64}
        with LLM(folder, random_weights=True, **options) as llm:
            params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
            answers.append([one.token_ids for one in llm.generate([[5, 6, 7], [9] * 20], params)])
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.slow
def test_the_real_small_model(smollm2: Path, tmp_path: Path) -> None:
    done = command(tmp_path, smollm2, "performance", "[[64,16]]", "--batch-size", 2, "--threads", 1)
    assert done.returncode == 0, done.stderr
    _, _, (row,) = results(tmp_path / "benchmark-results")
    assert row["Model"] == "smollm2-135m"
    assert float(row["Throughput(Tokens/s)"]) > 0
