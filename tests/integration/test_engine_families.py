"""Each architecture against transformers' Llama with the same weights: runs wherever the project does."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from model import LLM, SamplingParams
from model.config import DeviceName
from tests import devices
from tests.golden import families
from tests.golden.formulas import log_softmax, penalized

GENERATED = 24
LENGTHS = (1, 7, 32, 61)


@dataclass(frozen=True, slots=True)
class Case:
    """A checkpoint, what transformers has of it, and the prompts."""

    folder: Path
    llama: LlamaForCausalLM
    prompts: list[list[int]]


def prompts() -> list[list[int]]:
    random = np.random.default_rng(7)
    return [random.integers(3, families.VOCABULARY, length).tolist() for length in LENGTHS]


@pytest.fixture(scope="module", params=list(families.TINY))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    tiny, folder = families.TINY[request.param], tmp_path_factory.mktemp("tiny")
    own = families.weights(tiny, seed=3)
    families.write(tiny, folder, own)
    return Case(folder, families.llama(tiny, own), prompts())


@torch.inference_mode()
def logits(case: Case, tokens: list[int]) -> np.ndarray:
    """transformers', of all positions at once, without a cache."""
    return case.llama(torch.tensor([tokens])).logits[0].numpy()


def greedy(case: Case, prompt: list[int]) -> Iterator[tuple[int, float]]:
    """transformers' tokens, each with its lead over the second likeliest."""
    tokens = list(prompt)
    for _ in range(GENERATED):
        second, first = np.sort(row := logits(case, tokens)[-1])[-2:]
        tokens.append(int(row.argmax()))
        yield tokens[-1], float(first - second)


@pytest.mark.parametrize(
    "options",
    [
        {"max_step_tokens": 5, "max_num_seqs": 3, "block_size": 4},
        pytest.param({"max_step_tokens": 512}, marks=pytest.mark.thorough),
        pytest.param({"attention": "flash", "max_step_tokens": 64}, marks=pytest.mark.thorough),
    ],
)
def test_tokens_and_scores_are_transformers(
    case: Case, options: dict[str, object], device: DeviceName
) -> None:
    params = SamplingParams(
        max_tokens=GENERATED, temperature=0, ignore_eos=True, logprobs=5, prompt_logprobs=5
    )
    settings = devices.options(device, **{"max_num_seqs": 4, **options})
    with LLM(case.folder, **settings) as llm:
        completions = llm.generate(case.prompts, params)
    for prompt, completion in zip(case.prompts, completions, strict=True):
        tokens, leads = zip(*greedy(case, prompt), strict=True)
        assert min(leads) > 5e-4, "a choice that rounding could turn proves nothing"
        assert completion.token_ids == tokens
        assert completion.logprobs is not None
        assert completion.prompt_logprobs is not None
        records = [*completion.prompt_logprobs, *completion.logprobs]
        expected = log_softmax(logits(case, [*prompt, *tokens]))
        assert [record.token_id for record in records] == [*prompt[1:], *tokens]
        for record, row in zip(records, expected[:-1], strict=True):
            for token, value in ((record.token_id, record.logprob), *record.top):
                assert value == pytest.approx(row[token], abs=1e-4)


def test_the_repetition_penalty_is_transformers(case: Case) -> None:
    """generate() with its own processor, token by token."""
    params = SamplingParams(max_tokens=GENERATED, temperature=0, ignore_eos=True, repetition_penalty=1.3)
    with LLM(case.folder, num_threads=1) as llm:
        completions = llm.generate(case.prompts, params)
    for prompt, completion in zip(case.prompts, completions, strict=True):
        ids = torch.tensor([prompt])
        expected = case.llama.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=GENERATED,
            do_sample=False,
            repetition_penalty=1.3,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert list(completion.token_ids) == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize(
    "options",
    [
        {"frequency_penalty": 1.5},
        {"frequency_penalty": -0.3, "presence_penalty": 1.0, "repetition_penalty": 1.2},
        {"presence_penalty": 2.0, "repetition_penalty": 0.9},
    ],
)
def test_penalties_hold_through_a_whole_answer(case: Case, options: dict[str, float]) -> None:
    """Against transformers' logits of the same tokens, penalized by the formulas."""
    params = SamplingParams(max_tokens=GENERATED, temperature=0, ignore_eos=True, **options)
    with LLM(case.folder, num_threads=1) as llm:
        completions = llm.generate(case.prompts, params)
    for prompt, completion in zip(case.prompts, completions, strict=True):
        rows = logits(case, [*prompt, *completion.token_ids])[len(prompt) - 1 : -1]
        for step, (row, token) in enumerate(zip(rows, completion.token_ids, strict=True)):
            wanted = penalized(row, prompt, completion.token_ids[:step], params)
            assert wanted[token] > wanted.max() - 1e-4


@pytest.mark.parametrize(
    "name", ["v1 with biases", "v3 with all biases", "v2 with biases, one kv head, linear"]
)
def test_two_ranks_add_each_bias_once(name: str, tmp_path: Path) -> None:
    tiny = families.TINY[name]
    own = families.weights(tiny, seed=3)
    families.write(tiny, tmp_path, own)
    case = Case(tmp_path, families.llama(tiny, own), prompts())
    params = SamplingParams(max_tokens=GENERATED, temperature=0, ignore_eos=True)
    with LLM(tmp_path, tensor_parallel_size=2, num_threads=1) as llm:
        completions = llm.generate(case.prompts, params)
    for prompt, completion in zip(case.prompts, completions, strict=True):
        assert list(completion.token_ids) == [token for token, _ in greedy(case, prompt)]


@pytest.mark.parametrize("name", list(families.DYNAMIC))
@pytest.mark.parametrize("options", [{"max_step_tokens": 512}, {"max_step_tokens": 5, "block_size": 4}])
def test_dynamic_rope_past_max_position_is_transformers_with_its_cache(
    name: str, options: dict[str, int], tmp_path: Path
) -> None:
    """There each prompt alone on a fresh model, for it keeps a stretched base; here all at once, twice."""
    tiny = families.DYNAMIC[name]
    own = families.weights(tiny, seed=3)
    families.write(tiny, tmp_path, own)
    params = SamplingParams(max_tokens=GENERATED, temperature=0, ignore_eos=True, logprobs=0)
    with LLM(tmp_path, max_model_len=128, max_num_seqs=4, num_threads=1, **options) as llm:
        completions = llm.generate(prompts(), params)
        again = llm.generate(prompts(), params)
    assert [one.token_ids for one in again] == [one.token_ids for one in completions]
    for prompt, completion in zip(prompts(), completions, strict=True):
        ids = torch.tensor([prompt])
        expected = families.llama(tiny, own).generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=GENERATED,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        assert list(completion.token_ids) == expected.sequences[0, len(prompt) :].tolist()
        assert completion.logprobs is not None
        for record, row in zip(completion.logprobs, expected.logits, strict=True):
            wanted = log_softmax(row[0].numpy())[record.token_id]
            assert record.logprob == pytest.approx(wanted, abs=1e-4)
