"""Tiny checkpoints with what the original modelling code answered, for tests to compare with.

`v2_gqa` is committed; the others are whatever lies in the shared reference data, where that is present: a
folder NAME with the checkpoint and beside it NAME.*.npz with the answers. Each prompt has `p{i}_ids`, the
logits of its last positions `p{i}_prefill_logits`, and greedy tokens `p{i}_gen_ids`.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import pytest

from model.config import ModelConfig

HERE = Path(__file__).parent
_SHARED = Path(os.environ.get("LONGHAUL_SHARED", HERE.parents[2] / "shared")) / "golden"

GENERATED = 24


@dataclass(frozen=True)
class Golden:
    """One checkpoint and the original code's answers."""

    folder: Path
    answers: dict[str, np.ndarray]

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def model(self) -> ModelConfig:
        return ModelConfig.load(self.folder)

    @property
    def prompts(self) -> list[list[int]]:
        """Token ids of each prompt."""
        count = sum(name.startswith("p") and name.endswith("_prefill_logits") for name in self.answers)
        return [self.answers[f"p{number}_ids"].tolist() for number in range(count)]

    @property
    def tokens(self) -> list[list[int]]:
        """The greedy continuation of each prompt."""
        return [self.answers[f"p{number}_gen_ids"].tolist() for number in range(len(self.prompts))]

    @property
    def comparable(self) -> list[int]:
        """How many tokens of each continuation are to be equal.

        All, but for InternLM v1 with dynamic rope: it turns all cached keys anew as the sequence grows past
        max_position, and this engine holds the base of the prompt.
        """
        rope = self.model.rope
        if rope.kind != "dynamic" or rope.grows:
            return [len(tokens) for tokens in self.tokens]
        return [
            min(max(rope.max_position - len(prompt) + 1, 1), len(tokens))
            for prompt, tokens in zip(self.prompts, self.tokens, strict=True)
        ]

    def prefill_logits(self, number: int) -> np.ndarray:
        """Of a prompt's last positions, [positions, vocabulary]."""
        return self.answers[f"p{number}_prefill_logits"]

    def cache_bytes(self, tokens: int) -> int:
        """Of float32 keys and values, on one rank."""
        model = self.model
        return 2 * 4 * model.num_layers * model.num_kv_heads * model.head_dim * tokens


def find(folder: Path) -> Iterator[tuple[str, Path, Path]]:
    """The name, the checkpoint's folder and the file of answers of each golden there."""
    for config in sorted(folder.glob("*/config.json")):
        checkpoint = config.parent
        inside = checkpoint / "expected.npz"
        for answers in [inside] if inside.exists() else sorted(folder.glob(f"{checkpoint.name}.*.npz")):
            yield checkpoint.name, checkpoint, answers


def read(folder: Path, answers: Path) -> Golden:
    with np.load(answers) as stored:
        return Golden(folder, dict(stored))


@cache
def _known() -> dict[str, tuple[Path, Path]]:
    shared = {name: (folder, answers) for name, folder, answers in find(_SHARED)}
    return shared | {name: (folder, answers) for name, folder, answers in find(HERE)}


def load(name: str) -> Golden:
    """Read one; the test that asks is skipped if the data is not here."""
    if name not in _known():
        pytest.skip(f"{name} is not in {_SHARED}: set LONGHAUL_SHARED to the folder with the reference data")
    return read(*_known()[name])


_OWN = [name for name, _, _ in find(HERE)]
_OTHERS = [name for name in _known() if name not in _OWN] or ["shared"]
NAMES = [*map(pytest.param, _OWN), *(pytest.param(name, marks=pytest.mark.shared) for name in _OTHERS)]
