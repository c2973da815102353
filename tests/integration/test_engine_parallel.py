"""Tensor parallelism over real processes: equal tokens at every world size; all end when one dies."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from model import LLM, Engine, EngineConfig, Request, SamplingParams
from model.errors import ConfigError, RankError
from tests.golden import reference
from tests.models import small_model

GREEDY = SamplingParams(max_tokens=reference.GENERATED, temperature=0, ignore_eos=True)
SAMPLED = SamplingParams(max_tokens=8, temperature=0.8, top_p=0.9, seed=11, ignore_eos=True, logprobs=3)


@pytest.mark.parametrize("world", [2, 4, 8])
def test_tokens_equal_those_of_one_rank(world: int) -> None:
    """At 4 and 8 ranks the 2 kv heads are replicated."""
    golden = reference.load("v2_gqa")
    options = {"max_step_tokens": 64, "max_num_seqs": 8, "block_size": 8, "num_threads": 1}
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


@pytest.mark.parametrize(("name", "world"), [("v1_bias", 2), ("v1_bias", 3), ("v3_dyn", 4), ("v2_dyn", 2)])
@pytest.mark.shared
def test_the_family_on_several_ranks(name: str, world: int) -> None:
    """Biases are added once; 256 columns of an MLP do not divide by 3, which is told."""
    golden = reference.load(name)
    if (name, world) == ("v1_bias", 3):
        with pytest.raises(ConfigError, match="does not divide the model's 256 MLP columns"):
            LLM(golden.folder, tensor_parallel_size=world)
        return
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


def engine_of_two() -> Engine:
    golden = reference.load("v2_gqa")
    engine = Engine(EngineConfig(path=golden.folder, tensor_parallel_size=2, num_threads=1))
    for number, prompt in enumerate(golden.prompts):
        engine.add(Request(id=str(number), prompt_token_ids=tuple(prompt), params=GREEDY))
    return engine


def run(engine: Engine) -> None:
    while engine.has_unfinished:
        engine.step()


def rank_processes() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if "model.runner" in child.cmdline()]


def test_a_rank_that_dies_is_named_and_the_engine_ends() -> None:
    engine = engine_of_two()
    try:
        engine.step()
        (other,) = rank_processes()
        other.send_signal(signal.SIGKILL)
        with pytest.raises(RankError, match="rank 1 of 2 was killed by SIGKILL"):
            run(engine)
    finally:
        engine.close()
    assert not rank_processes()


def test_close_ends_the_ranks_and_a_new_engine_can_start() -> None:
    for _ in range(2):
        engine = engine_of_two()
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


def test_heads_that_do_not_divide_are_told_before_anything_starts() -> None:
    golden = reference.load("v2_gqa")
    with pytest.raises(
        ConfigError, match="tensor_parallel_size 3 does not divide the model's 8 attention heads"
    ):
        LLM(golden.folder, tensor_parallel_size=3)
    assert not rank_processes()
