"""Tensor parallelism over real processes: equal tokens at every world size; all end when one dies."""

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file, save_file

from benchmarks import golden_table
from model import LLM, Engine, EngineConfig, Request, SamplingParams
from model.config import DeviceName
from model.errors import CheckpointError, RankError
from tests import devices
from tests.golden import reference
from tests.models import small_model

GREEDY = SamplingParams(max_tokens=reference.GENERATED, temperature=0, ignore_eos=True)
THOROUGH = pytest.mark.thorough
SAMPLED = SamplingParams(max_tokens=8, temperature=0.8, top_p=0.9, seed=11, ignore_eos=True, logprobs=3)


@pytest.mark.parametrize("world", [2, *(pytest.param(world, marks=THOROUGH) for world in (4, 8))])
def test_tokens_equal_those_of_one_rank(world: int, device: DeviceName) -> None:
    """At 4 and 8 ranks the 2 kv heads are replicated."""
    devices.require(device, world)
    golden = reference.load("v2_gqa")
    options = devices.options(device, max_step_tokens=64, max_num_seqs=8, block_size=8)
    with LLM(golden.folder, **options) as llm:
        sampled = llm.generate(golden.prompts, SAMPLED)
    with LLM(golden.folder, tensor_parallel_size=world, **options) as llm:
        assert [list(one.token_ids) for one in llm.generate(golden.prompts, GREEDY)] == golden.tokens
        again = llm.generate(golden.prompts, SAMPLED)
    assert [one.token_ids for one in again] == [one.token_ids for one in sampled]
    for one, other in zip(again, sampled, strict=True):
        assert one.logprobs
        assert other.logprobs
        assert [record.logprob for record in one.logprobs] == pytest.approx(
            [record.logprob for record in other.logprobs], abs=1e-4
        )


@pytest.mark.parametrize(
    ("name", "world"),
    [
        ("v1_bias", 2),
        *(pytest.param(*own, marks=THOROUGH) for own in (("v3_dyn", 4), ("v2_dyn", 2), ("v2_linear", 2))),
    ],
)
@pytest.mark.shared
def test_the_family_on_several_ranks(name: str, world: int, device: DeviceName) -> None:
    """Biases are added once. Twice, so that the second time finds the first's blocks on every rank."""
    devices.require(device, world)
    golden = reference.load(name)
    options = devices.options(device, max_step_tokens=40, max_num_seqs=8, block_size=8, max_model_len=256)
    with LLM(golden.folder, tensor_parallel_size=world, **options) as llm:
        for _ in range(2):
            completions = llm.generate(golden.prompts, GREEDY)
            assert [list(one.token_ids) for one in completions] == golden.tokens
        size = llm.engine.config.block_size
        assert all(one.cached_tokens for one in completions if one.prompt_tokens >= size)


@pytest.mark.parametrize("setting", golden_table.FEW[1:])
def test_logits_on_two_ranks_equal_the_original(setting: golden_table.Setting) -> None:
    golden = reference.load("v2_gqa")
    row = golden_table.measure(golden, 2, [setting])
    assert row.wrong == []
    assert 0 < row.error < 1e-4
    assert row.equal == row.compared == 8


@pytest.mark.parametrize(
    ("name", "world"),
    [
        ("v2_gqa", 3),
        *(pytest.param("v1_bias", world, marks=pytest.mark.shared) for world in (3, 4, 8)),
    ],
)
def test_what_does_not_divide_is_padded(name: str, world: int) -> None:
    """6 heads with biases on 8 ranks, 8 heads in 2 groups on 3, 256 columns of an MLP on 3."""
    golden = reference.load(name)
    with LLM(golden.folder, tensor_parallel_size=world, max_model_len=256, num_threads=1) as llm:
        assert [list(one.token_ids) for one in llm.generate(golden.prompts, GREEDY)] == golden.tokens


@pytest.mark.slow
def test_the_real_model_on_three_ranks() -> None:
    """9 heads, 3 kv heads, float32: every rank has a group."""
    prompts = ["The capital of France is", "Once upon a time", [{"role": "user", "content": "Say hello."}]]
    params = SamplingParams(max_tokens=24, temperature=0)
    answers = []
    for world in (1, 3):
        options = {"tensor_parallel_size": world, "dtype": "float32", "max_model_len": 128, "num_threads": 1}
        with LLM(small_model(), **options) as llm:
            answers.append(llm.generate(prompts, params))
    assert answers[0] == answers[1]
    assert "Paris" in answers[0][0].text


def engine_of(world: int) -> Engine:
    golden = reference.load("v2_gqa")
    engine = Engine(EngineConfig(path=golden.folder, tensor_parallel_size=world, num_threads=1))
    for number, prompt in enumerate(golden.prompts):
        engine.add(Request(id=str(number), prompt_token_ids=tuple(prompt), params=GREEDY))
    return engine


def run(engine: Engine) -> None:
    while engine.has_unfinished:
        engine.step()


def rank_processes() -> dict[int, psutil.Process]:
    """By their ranks."""
    children = psutil.Process().children(recursive=True)
    return {int(one.environ()["RANK"]): one for one in children if "model.runner" in one.cmdline()}


@pytest.mark.parametrize(("world", "rank"), [(2, 1), (4, 1), (4, 3)])
def test_a_rank_that_dies_is_named_and_the_others_end(world: int, rank: int) -> None:
    """Nobody calls close: the step that meets it ends them, and what follows says the same."""
    engine = engine_of(world)
    try:
        engine.step()
        others = rank_processes()
        assert sorted(others) == list(range(1, world))
        others[rank].send_signal(signal.SIGKILL)
        with pytest.raises(RankError, match=f"rank {rank} of {world} was killed by SIGKILL") as first:
            run(engine)
        _, alive = psutil.wait_procs(list(others.values()), timeout=10)
        assert not alive
        assert not rank_processes()
        for _ in range(2):
            with pytest.raises(RankError) as again:
                engine.step()
            assert again.value is first.value
    finally:
        engine.close()


def test_a_rank_that_dies_within_a_step_is_named() -> None:
    """Rank 2 stops answering, so that rank 0 waits for it in the middle of a step, and is killed then."""
    engine = engine_of(4)
    try:
        engine.step()
        others = rank_processes()
        others[2].send_signal(signal.SIGSTOP)
        killer = threading.Timer(1.0, lambda: others[2].send_signal(signal.SIGKILL))
        killer.start()
        with pytest.raises(RankError, match="rank 2 of 4 was killed by SIGKILL"):
            run(engine)
        killer.join()
        _, alive = psutil.wait_procs(list(others.values()), timeout=10)
        assert not alive
    finally:
        engine.close()


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("damage", ["missing", "mis-shaped"])
@pytest.mark.parametrize(
    "tensor",
    [
        "model.layers.1.attention.wqkv.weight",
        "model.layers.2.feed_forward.w2.weight",
        "model.norm.weight",
        "output.weight",
    ],
)
def test_a_tensor_that_is_not_as_it_should_be_is_named(
    tmp_path: Path, tensor: str, damage: str, world: int
) -> None:
    """On each number of ranks, and no process is left behind."""
    golden = reference.load("v2_gqa")
    (tmp_path / "config.json").write_text((golden.folder / "config.json").read_text())
    tensors = load_file(golden.folder / "model.safetensors")
    found = tensors.pop(tensor)
    if damage == "mis-shaped":
        tensors[tensor] = np.ascontiguousarray(found[:-1])
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=re.escape(tensor)) as error:
        LLM(tmp_path, tensor_parallel_size=world, num_threads=1)
    assert ("has no tensor" if damage == "missing" else "has shape") in str(error.value)
    assert "\n" not in str(error.value)
    assert not rank_processes()


def test_close_ends_the_ranks_and_a_new_engine_can_start() -> None:
    for _ in range(2):
        engine = engine_of(2)
        run(engine)
        engine.close()
        assert not rank_processes()


def test_the_ranks_end_with_a_killed_rank_0(tmp_path: Path) -> None:
    script = tmp_path / "rank0.py"
    script.write_text(
        "import sys\n"
        "from model import LLM\n"
        f"llm = LLM({str(reference.load('v2_gqa').folder)!r}, tensor_parallel_size=3 - 1, num_threads=1)\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as leader:
        assert leader.stdout
        assert leader.stdout.readline() == b"ready\n"
        (other,) = psutil.Process(leader.pid).children()
        leader.kill()
    assert other not in psutil.wait_procs([other], timeout=20)[1]
