"""Does `model evaluate` score as transformers does? Question by question, in float32 on the CPU.

    python benchmarks/evaluation_check.py --boolq DIR --ceval DIR [--questions 200] [--model FOLDER]

The sample is drawn by a seed. The reference reads the data, writes the prompts, encodes them with its own
tokenizer and runs AutoModelForCausalLM: it shares no line with model/evaluation. FOLDER must have a layout
that transformers reads; without it, `model convert smollm2` makes one.
"""

import argparse
import csv
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from model.config import EngineConfig
from model.convert.conversion import Conversion, run
from model.convert.locate import locate
from model.engine import Engine
from model.evaluation import boolq, ceval
from model.evaluation.answers import Answered
from model.evaluation.feed import answered
from model.evaluation.task import Task, sample

_SHOTS, _ANSWER_TOKENS = 5, 20
_STDERR = Console(stderr=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """One task's comparison."""

    task: str
    questions: int
    equal: int
    ours_correct: int
    theirs_correct: int
    #: What is compared besides the label: the gap of two logits, or the answer's text.
    detail: str
    seconds: tuple[float, float]


class Reference:
    """transformers' model and tokenizer, one prompt at a time."""

    def __init__(self, folder: Path) -> None:
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        eos = self.model.generation_config.eos_token_id
        self._stops = {*(eos if isinstance(eos, list) else [eos]), self.tokenizer.eos_token_id}
        self._seen: list[int] = []
        self._past: Any = None

    @torch.inference_mode()
    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """Logits after the last of `ids`; what they share with the ids before is not computed again."""
        shared = 0
        while shared < min(len(self._seen), len(ids) - 1) and self._seen[shared] == ids[shared]:
            shared += 1
        if not shared:
            self._past = None
        elif unshared := len(self._seen) - shared:
            self._past.crop(-unshared)
        output = self.model(
            torch.tensor([ids[shared:]]), past_key_values=self._past, use_cache=True, logits_to_keep=1
        )
        self._past, self._seen = output.past_key_values, list(ids)
        return output.logits[0, -1]  # type: ignore[no-any-return]

    def continuation(self, prompt: str) -> str:
        """The text of the greedy answer."""
        ids = list(self.tokenizer(prompt)["input_ids"])
        answer: list[int] = []
        while len(answer) < _ANSWER_TOKENS:
            token = int(self.logits([*ids, *answer]).argmax())
            answer.append(token)
            if token in self._stops:
                break
        return str(self.tokenizer.decode(answer, skip_special_tokens=True))

    def yes_minus_no(self, prompt: str) -> float:
        """How much larger the logit of `yes` is than that of `no`."""
        logits = self.logits(self.tokenizer(prompt)["input_ids"])
        yes, no = (
            self.tokenizer(f"How can we learning machine learning: {word}", add_special_tokens=False)[
                "input_ids"
            ][-1]
            for word in ("yes", "no")
        )
        return float(logits[yes] - logits[no])


def boolq_prompts(data: Path) -> dict[str, tuple[str, str]]:
    """Prompt and right answer by our key."""
    entries = [json.loads(line) for line in (data / "dev.jsonl").read_text("utf-8").splitlines()]
    return {
        f"dev/{number}": (
            f"{one['title']} -- {one['passage']}\nQuestion: {one['question']}?\nAnswer:",
            "yes" if one["answer"] else "no",
        )
        for number, one in enumerate(entries)
    }


def ceval_prompts(data: Path) -> dict[str, tuple[str, str]]:
    """Prompt and right answer by our key."""
    prompts = {}
    for subject in json.loads((data / "subject_mapping.json").read_text("utf-8")):
        topic = subject.replace("_", " ")
        head = f"The following are multiple choice questions (with answers) about  {topic}.\n\n"
        for row in ceval_rows(data / "dev" / f"{subject}_dev.csv")[:_SHOTS]:
            head += f"{ceval_question(row)} {row['answer']}\n\n"
        for number, row in enumerate(ceval_rows(data / "val" / f"{subject}_val.csv")):
            prompts[f"{subject}/{number}"] = (head + ceval_question(row), row["answer"])
    return prompts


def ceval_rows(file: Path) -> list[dict[str, str]]:
    """The file's rows as text."""
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def ceval_question(row: dict[str, str]) -> str:
    """One question up to its answer."""
    return "{question}\nA. {A}\nB. {B}\nC. {C}\nD. {D}\nAnswer:".format(**row)


def ask_engine(folder: Path, task: Task, questions: int, seed: int) -> dict[str, Answered]:
    """Our answers to the sample, all in one batch."""
    engine = Engine(EngineConfig(path=folder, dtype="float32", kv_cache_bytes=2**30, max_num_seqs=16))
    try:
        return {one.question: one for one in answered(engine, task, sample(task.questions, questions, seed))}
    finally:
        engine.close()


def check_boolq(folder: Path, data: Path, questions: int, seed: int) -> Agreement:
    """Compare the label and the gap between the two logits."""
    start = time.monotonic()
    ours = ask_engine(folder, boolq.load(data), questions, seed)
    middle = time.monotonic()
    reference, prompts = Reference(folder), boolq_prompts(data)
    gaps = {
        key: reference.yes_minus_no(prompts[key][0]) for key in track(sorted(ours), "boolq", console=_STDERR)
    }
    labels = {key: "yes" if gap > 0 else "no" for key, gap in gaps.items()}
    difference = max(abs(float(str(ours[key].evidence["yes_minus_no"])) - gap) for key, gap in gaps.items())
    nearest = min(map(abs, gaps.values()))
    detail = f"largest difference of the gaps {difference:.1e}; smallest gap {nearest:.1e}"
    return agreement(
        "boolq", ours, labels, prompts, detail=detail, seconds=(middle - start, time.monotonic() - middle)
    )


def check_ceval(folder: Path, data: Path, questions: int, seed: int) -> Agreement:
    """Compare the label and the text of the whole answer."""
    start = time.monotonic()
    ours = ask_engine(folder, ceval.load(data, shots=_SHOTS), questions, seed)
    middle = time.monotonic()
    reference, prompts = Reference(folder), ceval_prompts(data)
    # Those of one subject follow one another, and their examples are computed once.
    texts = {
        key: reference.continuation(prompts[key][0]) for key in track(sorted(ours), "ceval", console=_STDERR)
    }
    labels = {key: text.lstrip()[:1] for key, text in texts.items()}
    same = sum(ours[key].evidence["text"] == text for key, text in texts.items())
    detail = f"{same} of {len(texts)} answers equal to the last of {_ANSWER_TOKENS} tokens"
    return agreement(
        "ceval", ours, labels, prompts, detail=detail, seconds=(middle - start, time.monotonic() - middle)
    )


def agreement(
    task: str,
    ours: dict[str, Answered],
    labels: dict[str, str],
    prompts: dict[str, tuple[str, str]],
    *,
    detail: str,
    seconds: tuple[float, float],
) -> Agreement:
    """Count what is equal and what is right."""
    return Agreement(
        task=task,
        questions=len(ours),
        equal=sum(one.predicted == labels[key] for key, one in ours.items()),
        ours_correct=sum(one.correct for one in ours.values()),
        theirs_correct=sum(label == prompts[key][1] for key, label in labels.items()),
        detail=detail,
        seconds=seconds,
    )


def print_table(one: Agreement) -> None:
    """What is equal, and how near."""
    ours, theirs = one.seconds
    table = Table(
        "task", "questions", "equal predictions", "correct: ours", "theirs", "seconds: ours", "theirs"
    )
    counts = (one.questions, one.equal, one.ours_correct, one.theirs_correct, round(ours), round(theirs))
    table.add_row(one.task, *map(str, counts))
    Console().print(table, one.detail)


def main() -> None:
    """Convert where no model is given, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--boolq", type=Path, help="folder of dev.jsonl")
    parser.add_argument("--ceval", type=Path, help="folder of dev/, val/ and subject_mapping.json")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.model or Path(scratch) / "smollm2"
        if options.model is None:
            run(Conversion(source=locate("smollm2"), target=folder), lambda *_: None)
        for check, data in ((check_boolq, options.boolq), (check_ceval, options.ceval)):
            if data is not None:
                print_table(check(folder, data, options.questions, options.seed))


if __name__ == "__main__":
    main()
