"""The example file is what its README says, and Longhaul's own parser takes every line of it."""

import re
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from jobs.dialogue import Dialogue, parse_line

FILE = Path(__file__).parents[2] / "examples" / "dialogues.jsonl"
CHINESE = re.compile(r"[\u4e00-\u9fff]")
INSTRUCTION = re.compile(r"^Provide a concise, objective summary of |^请用不超过三句话")


def kind(raw: bytes) -> str:
    line = msgspec.json.decode(raw)
    if isinstance(line, list):
        return "list"
    return next(name for name in ("body", "messages", "prompt") if name in line)


@pytest.fixture(scope="module")
def lines() -> list[bytes]:
    return FILE.read_bytes().splitlines()


@pytest.fixture(scope="module")
def dialogues(lines: list[bytes]) -> list[Dialogue]:
    return [parse_line(line, number, 1 << 20) for number, line in enumerate(lines, start=1)]


def test_every_line_is_taken_and_asks_for_a_summary(dialogues: list[Dialogue]) -> None:
    assert len(dialogues) >= 28
    for dialogue in dialogues:
        instruction, _, document = "\n\n".join(turn.content for turn in dialogue.messages).partition("\n\n")
        assert INSTRUCTION.match(instruction), f"line {dialogue.line}: {instruction!r}"
        length = len(CHINESE.findall(document)) or len(document.split())
        assert 80 <= length <= 500, f"line {dialogue.line} has {length} words or characters"


def test_both_languages_and_all_formats_together(lines: list[bytes], dialogues: list[Dialogue]) -> None:
    seen = Counter(
        (kind(raw), bool(CHINESE.search(dialogue.messages[-1].content)))
        for raw, dialogue in zip(lines, dialogues, strict=True)
    )
    assert {name for name, _ in seen} == {"list", "messages", "body", "prompt"}
    assert all(seen[name, chinese] >= 2 for name, _ in seen for chinese in (True, False))
    assert sum(count for (_, chinese), count in seen.items() if chinese) >= 9


def test_custom_ids_are_unique_and_lengths_bounded(lines: list[bytes], dialogues: list[Dialogue]) -> None:
    named = [dialogue.custom_id for dialogue in dialogues if dialogue.custom_id is not None]
    assert len(named) == len(set(named)) >= 16
    for raw, dialogue in zip(lines, dialogues, strict=True):
        assert dialogue.sampling.max_tokens == (None if kind(raw) == "list" else 96)


def test_no_document_twice(dialogues: list[Dialogue]) -> None:
    assert len({dialogue.messages[-1].content for dialogue in dialogues}) == len(dialogues)
