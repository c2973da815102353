"""Triton compiles the kernels for GPUs that are not there: they fit, and no step calls for another."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Shared memory that a program may have, from Ampere's and Ada's smaller cards on.
SHARED_BYTES = 99 * 1024
#: A thread that lacks registers keeps what is over in slow memory: some words of it do no harm.
STACK_BYTES = 32


@pytest.mark.parametrize(
    ("architecture", "product", "cases"),
    [
        (80, "mma.sync", ("7b", "bfloat16", "20b", "bfloat16", "small", "float32")),
        (90, "wgmma", ("7b", "bfloat16", "20b", "bfloat16", "small", "float16")),
    ],
    ids=["Ampere", "Hopper"],
)
def test_kernels_fit(architecture: int, product: str, cases: tuple[str, ...]) -> None:
    rows = compiled(architecture, *cases)
    for row in rows:
        if "further" in row:
            assert row["further"] == [], row
        else:
            assert row["shared"] <= SHARED_BYTES, row
            assert row["stack"] <= STACK_BYTES, row
            assert row["product"] == "none" or row["kernel"] == "attend_kernel"
    attention = [row for row in rows if row.get("kernel") == "attend_kernel" and row["dtype"] != "float32"]
    assert {row["product"] for row in attention} == {"mma.sync", product}


def compiled(architecture: int, *cases: str) -> list[dict[str, object]]:
    """What `compilation.py` prints. Compiled kernels are kept beside the tests' model."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(ROOT / ".longhaul" / "triton-cache")
    done = subprocess.run(
        [sys.executable, "-m", "tests.cuda.compilation", str(architecture), *cases],
        cwd=ROOT, env=environment, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()]
