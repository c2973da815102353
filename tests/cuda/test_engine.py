"""The whole engine on the GPU's code gives the tokens of the original and of the CPU, recorded or not."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from model import LLM, SamplingParams
from model.devices import RecordsDecode, cuda
from model.devices.cuda_graphs import DecodeGraphs
from model.devices.ladder import rung
from model.errors import ConfigError
from model.request import Completion
from tests.cuda import card
from tests.golden import reference

#: Few, for the interpreter takes its time.
TOKENS = 3
GREEDY = SamplingParams(max_tokens=TOKENS, temperature=0, ignore_eos=True)
SAMPLED = SamplingParams(
    max_tokens=TOKENS, temperature=0.8, top_p=0.9, seed=7, repetition_penalty=1.2, logprobs=2, ignore_eos=True
)
OPTIONS = {"max_model_len": 128, "max_num_seqs": 4, "num_threads": 1}


def answers(params: SamplingParams, count: int = 3, **options: Any) -> list[Completion]:
    """Of the shortest golden prompts: 5, 17 and 40 tokens."""
    golden = reference.load("v2_gqa")
    with LLM(golden.folder, **(OPTIONS | options)) as llm:
        return llm.generate([golden.prompts[number] for number in shortest(count)], params)


def shortest(count: int) -> list[int]:
    prompts = reference.load("v2_gqa").prompts
    return sorted(range(len(prompts)), key=lambda number: len(prompts[number]))[:count]


def tokens(completions: list[Completion]) -> list[list[int]]:
    return [list(one.token_ids) for one in completions]


def original(count: int = 3, length: int = TOKENS) -> list[list[int]]:
    answers = reference.load("v2_gqa").tokens
    return [answers[number][:length] for number in shortest(count)]


@pytest.mark.parametrize(
    "options",
    [
        {"block_size": 8, "max_step_tokens": 100},
        {"block_size": 1, "max_step_tokens": 512, "prefix_caching": False},
        {"attention": "flash", "max_step_tokens": 30},
    ],
    ids=["paged", "blocks of 1", "flash"],
)
def test_greedy_tokens_equal_the_original(options: dict[str, Any]) -> None:
    found = answers(GREEDY, device="cuda", **options)
    assert tokens(found) == original(len(found))


def test_found_prompts_give_the_same() -> None:
    """In a cache for little more than these, the second time."""
    golden = reference.load("v2_gqa")
    prompts = [golden.prompts[number] for number in shortest(3)]
    options = OPTIONS | {"block_size": 4, "max_model_len": 64, "kv_cache_bytes": golden.cache_bytes(64 + 16)}
    with LLM(golden.folder, device="cuda", **options) as llm:
        for _ in range(2):
            assert tokens(llm.generate(prompts, GREEDY)) == original()
        assert llm.engine.stats().cached_tokens > 0


def test_sampled_tokens_and_their_probabilities_equal_the_cpus() -> None:
    found, expected = (answers(SAMPLED, device=device, block_size=8) for device in ("cuda", "cpu"))
    assert tokens(found) == tokens(expected)
    for one, other in zip(found, expected, strict=True):
        assert [record.logprob for record in one.logprobs or ()] == pytest.approx(
            [record.logprob for record in other.logprobs or ()], abs=1e-4
        )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_prompts_score_as_on_the_cpu_in_short_dtypes(dtype: str) -> None:
    """Within the rounding of activations."""
    params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    found, expected = (answers(params, device=device, dtype=dtype) for device in ("cuda", "cpu"))
    for one, other in zip(found, expected, strict=True):
        assert [record.logprob for record in one.prompt_logprobs or ()] == pytest.approx(
            [record.logprob for record in other.prompt_logprobs or ()],
            abs=0.3 if dtype == "bfloat16" else 0.05,
        )


def test_steps_give_the_same_without_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(cuda, RecordsDecode)
    monkeypatch.delattr(cuda, "record_decode")
    assert not isinstance(cuda, RecordsDecode)
    assert tokens(answers(GREEDY, 2, device="cuda", block_size=8)) == original(2)


def test_decode_steps_are_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the prompts' steps, each by the recording of its size."""
    replayed: list[int] = []
    call = DecodeGraphs.__call__

    def counted(graphs: DecodeGraphs, batch: object, bases: object) -> torch.Tensor:
        result = call(graphs, batch, bases)  # type: ignore[arg-type]
        replayed.append(len(result))
        assert sorted(graphs._recorded) == sorted({rung(count, 3) for count in replayed})
        return result

    monkeypatch.setattr(DecodeGraphs, "__call__", counted)
    with LLM(reference.load("v2_gqa").folder, device="cuda", **(OPTIONS | {"max_num_seqs": 3})) as llm:
        lengths = (2, 3, 5)
        params = [SamplingParams(max_tokens=count, temperature=0, ignore_eos=True) for count in lengths]
        llm.generate([[5, 6], [7, 8], [9]], params)
    assert replayed == [3, 2, 1, 1]


def test_rows_that_fill_up_a_step_touch_no_sequence() -> None:
    """Three rows in a step recorded for four; without paging the cache's first slot is a sequence's own."""
    params = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
    found = []
    for device in ("cuda", "cpu"):
        with LLM(reference.load("v2_gqa").folder, device=device, attention="flash", **OPTIONS) as llm:
            found.append(tokens(llm.generate([[5, 6], [7, 8], [9, 10, 11]], params)))
    assert found[0] == found[1]


@pytest.mark.skipif(card.REAL and torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_ranks_give_the_tokens_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[2]
    if not card.REAL:
        paths = (root, root / "tests" / "cuda" / "on_ranks", os.environ.get("PYTHONPATH", ""))
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))
    params = SamplingParams(max_tokens=2, temperature=0, ignore_eos=True)
    found = answers(params, 2, device="cuda", tensor_parallel_size=2, block_size=8)
    assert tokens(found) == original(2, length=2)


def test_memory_in_use_is_what_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (3 * 2**30, 80 * 2**30))
    assert cuda.used_bytes() == 77 * 2**30


def test_what_the_card_can_not_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.devices.cuda_card.multiplies_bfloat16", lambda: False)
    assert cuda.dtype("auto", "bfloat16") == torch.float16
    assert cuda.dtype("auto", "float32") == torch.float32
    with pytest.raises(ConfigError, match="use dtype float16"):
        cuda.dtype("bfloat16", "float32")
