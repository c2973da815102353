"""Which of CANN's functions a step ends in, per chip: snapshots, so that a drift shows.

Here nothing is emulated: torch_npu runs down to the stand-ins, which write their names and compute nothing.
SNAPSHOT_UPDATE=1 writes the files anew.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.batch import Batch
from model.config import EngineConfig, ModelConfig
from model.devices.npu_chips import this_chip
from model.runner import Runner
from tests.npu.environment import ROOT
from tests.npu.tiny import tiny_checkpoint

SNAPSHOTS = ROOT / "tests" / "npu" / "snapshots"
BLOCK = 128


def batch(query_lens: list[int], context_lens: list[int]) -> Batch:
    """A block of its own for each sequence."""
    queries = np.array(query_lens, np.int32)
    return Batch(
        token_ids=np.arange(queries.sum(), dtype=np.int32),
        query_lens=queries,
        context_lens=np.array(context_lens, np.int32),
        prompt_lens=np.array(context_lens, np.int32),
        write_starts=np.zeros(len(queries), np.int32),
        block_tables=np.arange(1, len(queries) + 1, dtype=np.int32)[:, None],
        logit_rows=(np.cumsum(queries) - 1).astype(np.int32),
    )


STEPS = {
    "prefill": batch([5, 7], [5, 7]),
    "decode": batch([1, 1], [6, 8]),
    "mixed": batch([1, 7], [6, 17]),
}


@contextmanager
def traced(path: Path) -> Iterator[list[str]]:
    calls: list[str] = []
    os.environ["SIM_NPU_TRACE"] = str(path)
    try:
        yield calls
    finally:
        del os.environ["SIM_NPU_TRACE"]
        calls += path.read_text().splitlines()
        path.unlink()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers."""
    return tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


def runner_of(folder: Path, **options: Any) -> Runner:
    config = EngineConfig(
        path=folder,
        device="npu",
        dtype="float16",
        random_weights=True,
        num_threads=1,
        max_num_seqs=2,
        **options,
    )
    made = Runner(config, ModelConfig.load(folder), rank=0)
    made.allocate_cache(8, BLOCK)
    return made


@pytest.fixture(scope="module")
def runner(folder: Path) -> Runner:
    made = runner_of(folder)
    for step in STEPS.values():  # what is made once, such as masks, is not a step's
        made.lead(step)
    torch.npu.synchronize()
    return made


@pytest.mark.parametrize("name", STEPS)
def test_the_calls_of_a_step(runner: Runner, name: str, tmp_path: Path) -> None:
    with traced(tmp_path / "trace") as calls:
        runner.lead(STEPS[name])
        torch.npu.synchronize()
    equal_the_snapshot(name, calls)


@pytest.mark.skipif(this_chip().name != "910B", reason="the 910B has graphs")
def test_the_calls_of_a_captured_step(
    runner: Runner, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The first of its size runs and is captured; the second is replayed after each layer got its lengths."""
    assert runner
    monkeypatch.setenv("NPU_DECODE_GRAPHS", "1")
    graphed = runner_of(folder)
    torch.npu.synchronize()
    for name in ("graph-capture", "graph-replay"):
        with traced(tmp_path / "trace") as calls:
            graphed.lead(STEPS["decode"])
            torch.npu.synchronize()
        equal_the_snapshot(name, calls)


def equal_the_snapshot(name: str, calls: list[str]) -> None:
    path = SNAPSHOTS / f"{this_chip().name}-{name}.txt"
    text = "\n".join(calls) + "\n"
    if os.environ.get("SNAPSHOT_UPDATE"):
        path.write_text(text)
    assert calls
    assert text == path.read_text(), f"{path} has other calls: look at the difference, then SNAPSHOT_UPDATE=1"
