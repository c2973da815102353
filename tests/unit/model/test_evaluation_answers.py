"""What makes an evaluation resumable, and what is reported of it."""

import csv
import json
from pathlib import Path

import pytest

from model.config import EngineConfig
from model.evaluation import ceval
from model.evaluation.answers import FILE, Answered, opened
from model.evaluation.errors import AnswersError
from model.evaluation.fingerprint import description, short_name
from model.evaluation.report import report, summary, write_csv
from model.evaluation.task import Question
from tests.tiny_checkpoint import make_tiny_checkpoint
from tests.unit.model.test_evaluation_data import DEV, VAL, write_ceval

RUN = {"task": "ceval", "shots": 5, "questions": "1f", "dtype": "float32"}


def answered(question: str, predicted: str = "A", **fields: object) -> Answered:
    known = {"expected": "A", "evidence": {"text": "A\n答"}, "prompt_tokens": 7, "cached_tokens": 4}
    return Answered(question=question, predicted=predicted, **{**known, **fields})  # type: ignore[arg-type]


def test_answers_are_there_when_the_file_is_opened_again(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    with opened(folder, RUN) as answers:
        answers.add(answered("tea/0"))
        # Another process, and one that comes after a kill, reads what was added so far.
        assert len((folder / FILE).read_bytes().splitlines()) == 2
        answers.add(answered("tea/1", ""))
    with opened(folder, dict(RUN)) as answers:
        assert answers.done == {"tea/0": answered("tea/0"), "tea/1": answered("tea/1", "")}
        answers.add(answered("tea/2"))
    with opened(folder, RUN) as answers:
        assert list(answers.done) == ["tea/0", "tea/1", "tea/2"]


@pytest.mark.parametrize("torn", [b'{"question": "tea/1", "exp', b'{"run": {"ta'])
def test_a_line_that_was_cut_short_is_dropped(tmp_path: Path, torn: bytes) -> None:
    if torn.startswith(b'{"question'):
        with opened(tmp_path, RUN) as answers:
            answers.add(answered("tea/0"))
    with (tmp_path / FILE).open("ab") as file:
        file.write(torn)
    with opened(tmp_path, RUN) as answers:
        assert "tea/1" not in answers.done
        answers.add(answered("tea/1"))
    with opened(tmp_path, RUN) as answers:
        assert answers.done["tea/1"] == answered("tea/1")
    assert all(json.loads(line) for line in (tmp_path / FILE).read_bytes().splitlines())


def test_another_run_is_refused_with_what_differs(tmp_path: Path) -> None:
    with opened(tmp_path, RUN) as answers:
        answers.add(answered("tea/0"))
    with pytest.raises(AnswersError) as caught, opened(tmp_path, {**RUN, "shots": 3, "questions": "2e"}):
        pass
    message = str(caught.value)
    assert "shots was 5, is 3; questions differ; give another --output, or --restart" in message
    assert "dtype" not in message
    with opened(tmp_path, RUN) as answers:
        assert "tea/0" in answers.done
    with opened(tmp_path, {**RUN, "shots": 3}, restart=True) as answers:
        assert not answers.done
    with opened(tmp_path, {**RUN, "shots": 3}) as answers:
        assert not answers.done


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    with (
        opened(tmp_path, RUN),
        pytest.raises(AnswersError, match="another process is writing"),
        opened(tmp_path, RUN),
    ):
        pass


@pytest.mark.parametrize(
    ("line", "complaint"), [(b"nonsense", "line 2: damaged"), (b'{"a": 1}', "line 2: not an answer")]
)
def test_a_damaged_file_is_named_with_its_line(tmp_path: Path, line: bytes, complaint: str) -> None:
    (tmp_path / FILE).write_bytes(json.dumps({"run": RUN}).encode() + b"\n" + line + b"\n")
    with pytest.raises(AnswersError, match=complaint), opened(tmp_path, RUN):
        pass


def test_a_folder_that_can_not_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(AnswersError, match="can not be written: Not a directory"),
        opened(tmp_path / "file" / "run", RUN),
    ):
        pass


def test_a_run_is_known_by_checkpoint_task_and_precision_and_not_by_batch_or_place(tmp_path: Path) -> None:
    model = make_tiny_checkpoint(tmp_path / "model")
    data = write_ceval(tmp_path / "data", val=VAL, dev=DEV)
    task = ceval.load(data, shots=2)
    run = description(task, EngineConfig(path=model))
    assert json.loads(json.dumps(run)) == run
    assert run == description(
        ceval.load(data, shots=2), EngineConfig(path=model, max_num_seqs=3, block_size=8)
    )
    other = [
        description(ceval.load(data, shots=1), EngineConfig(path=model)),
        description(ceval.load(data, shots=2, chat=True), EngineConfig(path=model)),
        description(task, EngineConfig(path=model, dtype="float32")),
        description(task, EngineConfig(path=model, max_model_len=64)),
        description(
            ceval.load(write_ceval(data, val=VAL.replace("leaf", "cup"), dev=DEV), shots=2),
            EngineConfig(path=model),
        ),
    ]
    model.rename(tmp_path / "moved")
    assert description(task, EngineConfig(path=tmp_path / "moved")) == run
    weights = tmp_path / "moved" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    other.append(description(task, EngineConfig(path=tmp_path / "moved")))
    assert len({short_name(one) for one in [run, *other]}) == len(other) + 1


def test_the_report_counts_per_subject_and_every_question_once(tmp_path: Path) -> None:
    questions = [
        Question(key=f"{subject}/{number}", subject=subject, prompt="?", answer="A")
        for subject, count in (("tea", 3), ("ale", 1))
        for number in range(count)
    ]
    too_long = {"error": "context_length_exceeded", "evidence": {}, "prompt_tokens": 900, "cached_tokens": 0}
    outcomes = [
        answered("tea/0"),
        answered("tea/1", "B"),
        answered("tea/2", "", **too_long),
        answered("ale/0"),
    ]
    done = {one.question: one for one in [*outcomes, answered("elsewhere/0")]}
    found = report(questions, done)
    write_csv(tmp_path / "scores.csv", found)
    with (tmp_path / "scores.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["subject", "correct", "total", "accuracy"],
            ["tea", "1", "3", "0.333333"],
            ["ale", "1", "1", "1.000000"],
            ["total", "2", "4", "0.500000"],
        ]
    assert (found.too_long, found.unanswered, found.prompt_tokens, found.cached_tokens) == (1, 0, 21, 12)
    assert summary(found)["accuracy"] == 0.5
    assert report(questions, {**done, "ale/0": answered("ale/0", "")}).unanswered == 1
