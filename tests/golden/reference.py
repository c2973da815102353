"""Tiny checkpoints with what the original modelling code answered, for tests to compare with.

`v2_gqa` is committed; the rest of the family is read from the shared reference data where that is present.
Each prompt has `p{i}_ids`, the logits of its last positions `p{i}_prefill_logits`, and 24 greedy tokens
`p{i}_gen_ids`.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

_HERE = Path(__file__).parent
_SHARED = Path(os.environ.get("LONGHAUL_SHARED", _HERE.parents[2] / "shared")) / "golden"
#: Name and the suffix of the file with the answers.
_FAMILY = {"v1_bias": "v1", "v1_dyn": "v1", "v2_linear": "v25", "v2_dyn": "v25", "v3_dyn": "v3"}

GENERATED = 24


@dataclass(frozen=True, slots=True)
class Golden:
    """One checkpoint and the original code's answers."""

    folder: Path
    answers: dict[str, np.ndarray]

    @property
    def prompts(self) -> list[list[int]]:
        """Token ids of each prompt."""
        count = sum(name.startswith("p") and name.endswith("_prefill_logits") for name in self.answers)
        return [self.answers[f"p{number}_ids"].tolist() for number in range(count)]

    @property
    def tokens(self) -> list[list[int]]:
        """The greedy continuation of each prompt."""
        return [self.answers[f"p{number}_gen_ids"].tolist() for number in range(len(self.prompts))]


def load(name: str) -> Golden:
    """Read one; the test that asks is skipped if the data is not here."""
    if name == "v2_gqa":
        folder, answers = _HERE / name, _HERE / name / "expected.npz"
    else:
        folder, answers = _SHARED / name, _SHARED / f"{name}.{_FAMILY[name]}.npz"
    if not answers.exists():
        pytest.skip(f"{answers} is not here: set LONGHAUL_SHARED to the folder with the reference data")
    with np.load(answers) as stored:
        return Golden(folder, dict(stored))


NAMES = [pytest.param("v2_gqa"), *(pytest.param(name, marks=pytest.mark.shared) for name in _FAMILY)]
