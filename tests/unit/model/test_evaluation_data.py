"""The evaluation's questions: read as text, asked in modeltest's words, refused by name and line."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from model.evaluation import boolq, ceval
from model.evaluation.errors import DataError, TaskError
from model.evaluation.task import sample
from model.request import Completion, TokenLogprob
from model.tokenizer import Tokenizer
from tests.tiny_checkpoint import make_tiny_checkpoint

HEADER = "id,question,A,B,C,D,answer"
SHARED = Path(os.environ.get("LONGHAUL_SHARED", Path(__file__).parents[4] / "shared"))
#: The ids that modeltest's rule gives with the real tokenizers, as published with them.
YES_NO = {"internlm2-chat-7b": (9970, 1038), "internlm-20b": (9970, 1038)}


def completion(**fields: object) -> Completion:
    known = {
        "request_id": "x", "token_ids": (1,), "text": "", "finish_reason": "length", "logprobs": None,
        "prompt_tokens": 1, "cached_tokens": 0,
    }  # fmt: skip
    return Completion(**{**known, **fields})  # type: ignore[arg-type]


def write_boolq(folder: Path, lines: Sequence[object], name: str = "dev.jsonl") -> Path:
    folder.mkdir(exist_ok=True)
    text = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / name).write_text("".join(f"{line}\n" for line in text), encoding="utf-8")
    return folder


def river(**changes: object) -> dict[str, object]:
    entry = {"title": "Elm River", "passage": "It flows north.", "question": "is it a river", "answer": True}
    return {**entry, **changes}


def write_ceval(folder: Path, *, val: str, dev: str = "", subjects: Sequence[str] = ("tea_making",)) -> Path:
    for split, rows in (("val", val), ("dev", dev)):
        (folder / split).mkdir(parents=True, exist_ok=True)
        for subject in subjects:
            (folder / split / f"{subject}_{split}.csv").write_text(f"{HEADER}\n{rows}", encoding="utf-8")
    (folder / "subject_mapping.json").write_text(json.dumps({subject: [] for subject in subjects}))
    return folder


def test_boolq_asks_in_the_words_of_modeltest(tmp_path: Path) -> None:
    task = boolq.load(write_boolq(tmp_path, [river(), river(answer=False)]))
    assert [question.prompt for question in task.questions] == [
        "Elm River -- It flows north.\nQuestion: is it a river?\nAnswer:"
    ] * 2
    assert [question.answer for question in task.questions] == ["yes", "no"]
    assert [question.key for question in task.questions] == ["dev/0", "dev/1"]


def test_boolq_reads_every_file_of_a_folder_or_the_one_named(tmp_path: Path) -> None:
    write_boolq(tmp_path, [river()])
    write_boolq(tmp_path, [river(), river()], "more.jsonl")
    assert [one.subject for one in boolq.load(tmp_path).questions] == ["dev", "more", "more"]
    assert len(boolq.load(tmp_path / "more.jsonl").questions) == 2


def test_boolq_takes_the_larger_of_two_logits_whatever_else_is_likelier(tmp_path: Path) -> None:
    predict = boolq.load(write_boolq(tmp_path, [river()])).predict
    for yes, no, label in ((-3.0, -4.0, "yes"), (-4.0, -3.0, "no"), (-3.0, -3.0, "no")):
        position = TokenLogprob(token_id=9, logprob=-0.1, top=(), asked=((5, yes), (7, no)))
        prediction = predict(completion(logprobs=(position,)))
        assert (prediction.label, prediction.evidence["yes_minus_no"]) == (label, yes - no)


def test_boolq_asks_for_the_last_tokens_of_its_two_sentences(tmp_path: Path) -> None:
    task = boolq.load(write_boolq(tmp_path / "data", [river()]))
    tokenizer = Tokenizer.load(make_tiny_checkpoint(tmp_path / "tiny"))
    params = task.params(tokenizer)
    assert [tokenizer.decode([token]) for token in params.logprob_token_ids] == ["s", "o"]
    assert (params.max_tokens, params.temperature, params.logprobs) == (1, 0, 0)


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="the reference tokenizers are not here")
@pytest.mark.parametrize("name", YES_NO)
def test_boolq_finds_the_published_ids_in_the_real_tokenizers(name: str) -> None:
    assert boolq.choice_ids(Tokenizer.load(SHARED / "tokenizers" / name)) == YES_NO[name]


def test_boolq_refuses_a_tokenizer_without_two_choices(tmp_path: Path) -> None:
    words = tokenizers.Tokenizer(models.WordLevel({"learning": 0, "<unk>": 1}, unk_token="<unk>"))  # noqa: S106
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TaskError, match="both `yes` and `no` in token 1"):
        boolq.choice_ids(Tokenizer.load(tmp_path))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "line 3: not valid JSON"),
        ("[1]", "line 3: not a JSON object"),
        (river(answer="true"), "line 3: answer must be true or false, not 'true'"),
        (river(title=None), "line 3: title must be text, not None"),
    ],
)
def test_boolq_names_the_line_that_it_can_not_use(tmp_path: Path, line: object, complaint: str) -> None:
    write_boolq(tmp_path, [river(), "", line])
    with pytest.raises(DataError) as caught:
        boolq.load(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'dev.jsonl'}, {complaint}")


def test_boolq_names_a_folder_or_file_without_questions(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no \.jsonl file"):
        boolq.load(tmp_path / "absent")
    write_boolq(tmp_path, [])
    with pytest.raises(DataError, match=r"dev\.jsonl holds no question"):
        boolq.load(tmp_path)


DEV = "0,Which pot?,iron,clay,glass,tin,B\n1,How hot?,60,70,80,90,C\n2,Who?,a,b,c,d,A\n"
VAL = '0,Which leaf?,green,black,None,1e3,D\n1,"Two lines,\nand a ""quote""","a,b",,c,d,C\n'
PROMPT = (
    "The following are multiple choice questions (with answers) about  tea making.\n\n"
    "Which pot?\nA. iron\nB. clay\nC. glass\nD. tin\nAnswer: B\n\n"
    "How hot?\nA. 60\nB. 70\nC. 80\nD. 90\nAnswer: C\n\n"
    "Which leaf?\nA. green\nB. black\nC. None\nD. 1e3\nAnswer:"
)


def test_ceval_asks_in_the_words_of_modeltest(tmp_path: Path) -> None:
    task = ceval.load(write_ceval(tmp_path, val=VAL, dev=DEV), shots=2)
    first, second = task.questions
    assert first.prompt == PROMPT
    assert (first.key, first.subject, first.answer) == ("tea_making/0", "tea_making", "D")
    assert isinstance(second.prompt, str)
    assert second.prompt.endswith('Two lines,\nand a "quote"\nA. a,b\nB. \nC. c\nD. d\nAnswer:')


def test_ceval_in_a_conversation_has_the_header_as_system_and_the_shots_as_turns(tmp_path: Path) -> None:
    task = ceval.load(write_ceval(tmp_path, val=VAL, dev=DEV), shots=1, chat=True)
    assert task.questions[0].prompt == (
        {
            "role": "system",
            "content": "The following are multiple choice questions (with answers) about  tea making.\n\n",
        },
        {"role": "user", "content": "Which pot?\nA. iron\nB. clay\nC. glass\nD. tin\nAnswer:"},
        {"role": "assistant", "content": "B"},
        {"role": "user", "content": "Which leaf?\nA. green\nB. black\nC. None\nD. 1e3\nAnswer:"},
    )


def test_ceval_keeps_the_order_of_the_mapping(tmp_path: Path) -> None:
    task = ceval.load(write_ceval(tmp_path, val=VAL, dev=DEV, subjects=("zinc", "ale", "m_n_o")), shots=1)
    assert [question.subject for question in task.questions] == ["zinc"] * 2 + ["ale"] * 2 + ["m_n_o"] * 2


def test_ceval_without_shots_needs_no_dev_file(tmp_path: Path) -> None:
    write_ceval(tmp_path, val=VAL)
    (tmp_path / "dev" / "tea_making_dev.csv").unlink()
    assert ceval.load(tmp_path, shots=0).questions[0].prompt == PROMPT.replace(
        PROMPT[PROMPT.index("Which pot?") : PROMPT.index("Which leaf?")], ""
    )


@pytest.mark.parametrize(
    ("text", "label"),
    [(" \n B. clay", "B"), ("A", "A"), ("答案是C", "答"), ("b", "b"), (" \n", ""), ("", "")],
)
def test_ceval_reads_the_first_character_that_is_no_white_space(
    tmp_path: Path, text: str, label: str
) -> None:
    task = ceval.load(write_ceval(tmp_path, val=VAL, dev=DEV), shots=1)
    assert task.predict(completion(text=text)).label == label
    params = task.params(Tokenizer.load(make_tiny_checkpoint(tmp_path / "tiny")))
    assert (params.max_tokens, params.temperature) == (20, 0)


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ("0,Q,a,b,c,d,E\n", "line 2: the answer must be one of A, B, C, D, not 'E'"),
        ('0,"Q\nQ",a,b,c,d,A\n1,Q,a,b,c,A\n', "line 4: 6 fields where the header has 7"),
        ('0,Q,a,b,c,d,A\n1,"Q,a,b,c,d,A\n', "line 3: not valid CSV: unexpected end of data"),
    ],
)
def test_ceval_names_the_line_that_it_can_not_use(tmp_path: Path, rows: str, complaint: str) -> None:
    write_ceval(tmp_path, val=rows, dev=DEV)
    with pytest.raises(DataError) as caught:
        ceval.load(tmp_path, shots=1)
    assert str(caught.value) == f"{tmp_path / 'val' / 'tea_making_val.csv'}, {complaint}"


def test_ceval_names_what_its_folder_lacks(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"subject_mapping\.json can not be read: No such file"):
        ceval.load(tmp_path)
    write_ceval(tmp_path, val=VAL, dev=DEV)
    with pytest.raises(DataError, match=r"tea_making_dev\.csv holds 3 examples, which is fewer than 5"):
        ceval.load(tmp_path)
    (tmp_path / "val" / "tea_making_val.csv").write_text("id,question,A,B,C\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"tea_making_val\.csv, line 1: no column D, answer"):
        ceval.load(tmp_path, shots=3)
    (tmp_path / "val" / "tea_making_val.csv").unlink()
    with pytest.raises(DataError, match=r"tea_making_val\.csv can not be read"):
        ceval.load(tmp_path, shots=3)


def test_a_sample_is_the_same_for_the_same_seed_and_keeps_the_order(tmp_path: Path) -> None:
    task = boolq.load(write_boolq(tmp_path, [river()] * 50))
    drawn = sample(task.questions, 8, 1)
    assert drawn == sample(task.questions, 8, 1)
    assert drawn != sample(task.questions, 8, 2)
    numbers = [task.questions.index(question) for question in drawn]
    assert len(set(numbers)) == 8
    assert numbers == sorted(numbers)
    assert sample(task.questions, 99, 1) == sample(task.questions, None, 1) == list(task.questions)


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="the published questions are not here")
def test_the_published_questions_are_read_whole() -> None:
    questions = boolq.load(SHARED / "data" / "boolq").questions
    assert len(questions) == 3270
    # 62.17 % is the majority class of the published set.
    assert sum(question.answer == "yes" for question in questions) == 2033
    task = ceval.load(SHARED / "data" / "ceval")
    assert len(task.questions) == 1346
    assert len({question.subject for question in task.questions}) == 52
    assert all(str(question.prompt).count("\nAnswer:") == 6 for question in task.questions)
