"""`model evaluate` from data to scores: equal to transformers, resumed after any end, clear when it fails."""

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from typer.testing import CliRunner

from benchmarks import evaluation_check
from model.cli import app
from model.convert.conversion import Conversion, run
from model.convert.locate import locate
from tests.services import wait_until
from tests.tiny_checkpoint import make_tiny_checkpoint
from tests.unit.model.test_evaluation_data import SHARED, write_boolq, write_ceval

SUBJECTS = ("tea_making", "high_seas")
DEV = "".join(f'{n},"Example {n}, of many",one,two,three,four,{"ABCD"[n % 4]}\n' for n in range(5))
VAL = "".join(f"{n},Question {n * 7}?,{n},{n + 1},None,{n * n},{'ABCD'[n % 4]}\n" for n in range(12))
ENTRIES = [
    {
        "title": f"River {n}",
        "passage": "It flows north " * (n % 5 + 1),
        "question": f"is {n} long",
        "answer": n % 3 == 0,
    }
    for n in range(40)
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with nonsense for weights and room for five examples, at a byte for each token."""
    return longer(make_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny"), 4096)


def longer(folder: Path, context: int) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": context}))
    return folder


@pytest.fixture(scope="module")
def boolq_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_boolq(tmp_path_factory.mktemp("data") / "boolq", ENTRIES)


@pytest.fixture(scope="module")
def ceval_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ceval(tmp_path_factory.mktemp("data") / "ceval", val=VAL, dev=DEV, subjects=SUBJECTS)


def arguments(model: Path, task: str, data: Path, output: Path, *options: str) -> list[str]:
    settings = ["--kv-cache", "32MiB", "--threads", "1", "--output", str(output), "--json"]
    return ["evaluate", str(model), task, "--data", str(data), *settings, *options]


def evaluate(*given: Any) -> dict[str, Any]:
    result = CliRunner().invoke(app, arguments(*given))
    assert result.exit_code == 0, result.output
    facts: dict[str, Any] = json.loads(result.stdout)
    return facts


def answers(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "answers.jsonl").read_text().splitlines()[1:]]


@torch.inference_mode()
def their_gap(model: Any, tokenizer: PreTrainedTokenizerFast, entry: dict[str, Any]) -> float:
    """Logit of `s`, the last byte of `yes`, minus that of `o`."""
    prompt = "{title} -- {passage}\nQuestion: {question}?\nAnswer:".format(**entry)
    logits = model(torch.tensor([tokenizer.encode(prompt)])).logits[0, -1]
    return float(logits[tokenizer.encode("s")[-1]] - logits[tokenizer.encode("o")[-1]])


def test_boolq_is_scored_as_transformers_would(tiny: Path, boolq_data: Path, tmp_path: Path) -> None:
    facts = evaluate(tiny, "boolq", boolq_data, tmp_path, "--max-num-seqs", "7")
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    gaps = {f"dev/{n}": their_gap(model, tokenizer, entry) for n, entry in enumerate(ENTRIES)}
    ours = {one["question"]: one for one in answers(tmp_path)}
    assert ours.keys() == gaps.keys()
    assert {key: one["evidence"]["yes_minus_no"] for key, one in ours.items()} == pytest.approx(
        gaps, abs=1e-4
    )
    right = sum((gap > 0) == entry["answer"] for gap, entry in zip(gaps.values(), ENTRIES, strict=True))
    assert {(gap > 0) for gap in gaps.values()} == {True, False}
    assert (facts["correct"], facts["questions"], facts["accuracy"]) == (right, 40, right / 40)


@pytest.mark.parametrize("chat", [False, True])
def test_ceval_is_scored_as_transformers_would(
    tiny: Path, ceval_data: Path, tmp_path: Path, *, chat: bool
) -> None:
    facts = evaluate(tiny, "ceval", ceval_data, tmp_path, "--shots", "2", *(["--chat"] if chat else []))
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    ours = {one["question"]: one for one in answers(tmp_path)}
    assert list(dict.fromkeys(one["subject"] for one in facts["subjects"])) == list(SUBJECTS)
    assert len(ours) == facts["questions"] == 24
    for key in ("tea_making/0", "tea_making/5", "high_seas/11"):
        prompt = their_prompt(tokenizer, key, chat=chat)
        assert ours[key]["prompt_tokens"] == len(prompt)
        theirs = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), do_sample=False,
            max_new_tokens=20, eos_token_id=[1, 3], pad_token_id=1,
        )[0, len(prompt) :]  # fmt: skip
        text = tokenizer.decode(theirs, skip_special_tokens=True)
        assert ours[key]["evidence"]["text"] == text
        assert ours[key]["predicted"] == text.lstrip()[:1]
    assert facts["cached_tokens"] > facts["prompt_tokens"] / 2


def their_prompt(tokenizer: PreTrainedTokenizerFast, key: str, *, chat: bool) -> Sequence[int]:
    """Written out by hand, from modeltest's description."""
    subject, number = key.split("/")
    head = (
        f"The following are multiple choice questions (with answers) about  {subject.replace('_', ' ')}.\n\n"
    )
    shots = [(f"Example {n}, of many\nA. one\nB. two\nC. three\nD. four\nAnswer:", "ABCD"[n]) for n in (0, 1)]
    n = int(number)
    last = f"Question {n * 7}?\nA. {n}\nB. {n + 1}\nC. None\nD. {n * n}\nAnswer:"
    if not chat:
        return tokenizer.encode(head + "".join(f"{ask} {answer}\n\n" for ask, answer in shots) + last)
    turns = [{"role": "system", "content": head}]
    for ask, answer in shots:
        turns += [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]
    found = tokenizer.apply_chat_template(
        [*turns, {"role": "user", "content": last}], add_generation_prompt=True, return_dict=True
    )
    return list(found["input_ids"])


def test_scores_are_written_per_subject_and_in_total(tiny: Path, ceval_data: Path, tmp_path: Path) -> None:
    facts = evaluate(tiny, "ceval", ceval_data, tmp_path)
    with (tmp_path / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["subject"], row["total"]) for row in rows] == [
        ("tea_making", "12"), ("high_seas", "12"), ("total", "24"),
    ]  # fmt: skip
    correct = {one["question"].split("/")[0]: 0 for one in answers(tmp_path)}
    for one in answers(tmp_path):
        correct[one["question"].split("/")[0]] += one["predicted"] == one["expected"]
    assert [int(row["correct"]) for row in rows] == [
        *(correct[name] for name in SUBJECTS),
        sum(correct.values()),
    ]
    assert json.loads((tmp_path / "summary.json").read_text()) == facts
    assert (facts["task"], facts["checkpoint"], facts["questions"]) == ("ceval", str(tiny), 24)
    assert facts["run"] == json.loads((tmp_path / "answers.jsonl").read_text().splitlines()[0])["run"]


def test_a_sample_comes_first_and_the_whole_asks_only_the_rest(
    tiny: Path, boolq_data: Path, tmp_path: Path
) -> None:
    first = evaluate(tiny, "boolq", boolq_data, tmp_path, "--limit", "6", "--seed", "3")
    assert (first["questions"], first["asked_now"]) == (6, 6)
    sampled = {one["question"] for one in answers(tmp_path)}
    again = evaluate(tiny, "boolq", boolq_data, tmp_path, "--limit", "6", "--seed", "3")
    assert (again["asked_now"], again["correct"]) == (0, first["correct"])
    whole = evaluate(tiny, "boolq", boolq_data, tmp_path)
    assert (whole["questions"], whole["asked_now"]) == (40, 34)
    assert len({one["question"] for one in answers(tmp_path)} | sampled) == len(answers(tmp_path)) == 40
    fresh = evaluate(tiny, "boolq", boolq_data, tmp_path, "--restart")
    assert (fresh["asked_now"], fresh["correct"]) == (40, whole["correct"])


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_continues(tiny: Path, tmp_path: Path, end: signal.Signals) -> None:
    many = "".join(f"{n},Question {n}?,a,b,c,d,A\n" for n in range(500))
    data = write_ceval(tmp_path / "data", val=many, dev=DEV, subjects=SUBJECTS)
    output = tmp_path / "run"
    command = [sys.executable, "-m", "model.cli", *arguments(tiny, "ceval", data, output, "--shots", "1")]
    with subprocess.Popen([*command, "--max-num-seqs", "1"], stderr=subprocess.PIPE, text=True) as process:
        file = output / "answers.jsonl"
        wait_until(lambda: file.exists() and file.read_bytes().count(b"\n") > 3, seconds=120, what="answers")
        os.kill(process.pid, end)
        _, stderr = process.communicate(timeout=120)
    before = file.read_bytes().count(b"\n") - 1
    assert 3 <= before < 1000
    if end is signal.SIGINT:
        assert process.returncode == 130
        assert f"{before} of 1000 are answered: the same command continues" in stderr
    facts = evaluate(tiny, "ceval", data, output, "--shots", "1")
    assert (facts["questions"], facts["asked_now"]) == (1000, 1000 - before)
    assert len({one["question"] for one in answers(output)}) == len(answers(output)) == 1000


def test_a_prompt_longer_than_the_context_is_counted_and_stops_nothing(tiny: Path, tmp_path: Path) -> None:
    entries = [{**ENTRIES[0], "passage": "far " * 2000}, *ENTRIES[1:4]]
    facts = evaluate(tiny, "boolq", write_boolq(tmp_path / "data", entries), tmp_path / "run")
    assert (facts["questions"], facts["too_long"], facts["unanswered"]) == (4, 1, 0)
    refused = next(one for one in answers(tmp_path / "run") if one["question"] == "dev/0")
    assert (refused["error"], refused["predicted"]) == ("context_length_exceeded", "")
    assert refused["prompt_tokens"] > 8000
    shown = CliRunner().invoke(app, arguments(tiny, "boolq", tmp_path / "data", tmp_path / "run")[:-1])
    assert "1 prompts are longer than the context: counted as wrong" in shown.output
    assert "total" in shown.output


def test_another_runs_folder_is_refused_and_a_default_one_is_each_runs_own(
    tiny: Path, boolq_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(tiny, "boolq", boolq_data, tmp_path / "run", "--limit", "1")
    given = arguments(tiny, "boolq", boolq_data, tmp_path / "run", "--limit", "1", "--max-model-len", "900")
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 1
    assert result.stderr.startswith("error[answers_unusable]: ")
    assert "max_model_len was None, is 900" in result.stderr
    monkeypatch.chdir(tmp_path)
    places = []
    for context in ("900", "800", "900"):
        options = ["--limit", "1", "--max-model-len", context, "--kv-cache", "32MiB", "--json"]
        result = CliRunner().invoke(
            app, ["evaluate", str(tiny), "boolq", "--data", str(boolq_data), *options]
        )
        facts = json.loads(result.stdout)
        places.append((facts["output"], facts["asked_now"]))
    assert [asked for _, asked in places] == [1, 1, 0]
    assert places[0][0] == places[2][0] != places[1][0]
    assert places[0][0].startswith("evaluations/tiny-boolq-")


@pytest.mark.parametrize(
    ("given", "status", "complaint"),
    [
        (("boolq", "--shots", "5"), 2, "BoolQ is asked without examples"),
        (("boolq", "--chat"), 2, "BoolQ compares two words after a plain prompt"),
        (("mmlu",), 2, "mmlu"),
        (("ceval",), 1, "error[invalid_data]: "),
        (("boolq", "--max-step-tokens", "1"), 1, "error[invalid_settings]: "),
    ],
)
def test_what_can_not_be_asked_ends_with_one_line(
    tiny: Path, boolq_data: Path, tmp_path: Path, *, given: tuple[str, ...], status: int, complaint: str
) -> None:
    task, *options = given
    result = CliRunner().invoke(app, arguments(tiny, task, boolq_data, tmp_path / "run", *options))
    assert result.exit_code == status
    assert complaint in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_folder_without_a_model_or_without_a_tokenizer_is_named(boolq_data: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, arguments(tmp_path / "none", "boolq", boolq_data, tmp_path / "run"))
    assert (result.exit_code, "error[invalid_checkpoint]" in result.stderr) == (1, True)
    folder = longer(make_tiny_checkpoint(tmp_path / "mute"), 4096)
    (folder / "tokenizer.json").unlink()
    result = CliRunner().invoke(app, arguments(folder, "boolq", boolq_data, tmp_path / "run"))
    assert (result.exit_code, "has no tokenizer" in result.stderr) == (1, True)


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="the published questions are not here")
def test_the_real_model_answers_the_published_questions_as_in_transformers(tmp_path: Path) -> None:
    folder = tmp_path / "smollm2"
    run(Conversion(source=locate("smollm2"), target=folder), lambda *_: None)
    for found in (
        evaluation_check.check_boolq(folder, SHARED / "data" / "boolq", 8, 5),
        evaluation_check.check_ceval(folder, SHARED / "data" / "ceval", 2, 5),
    ):
        assert found.equal == found.questions
        assert found.ours_correct == found.theirs_correct
