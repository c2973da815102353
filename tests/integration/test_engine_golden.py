"""The whole family against the original modelling code: same logits and tokens, however it is run."""

import itertools

import numpy as np
import pytest
import torch

from model import LLM, EngineConfig, SamplingParams
from model.batch import Batch
from model.config import ModelConfig
from model.kv_cache import BlockPool
from model.runner import Runner
from model.scheduler import Scheduler, Sequence
from tests.golden import reference

GREEDY = SamplingParams(max_tokens=reference.GENERATED, temperature=0, ignore_eos=True)
#: InternLM v1 turns all cached keys anew as the sequence grows; this engine holds the prompt's base.
HELD_BASE = {"v1_dyn"}


@pytest.mark.parametrize("name", reference.NAMES)
@pytest.mark.parametrize(("chunk", "block_size"), [(512, 32), (7, 8), (64, 1), (1, 4)])
def test_prefill_logits_equal_the_original(name: str, chunk: int, block_size: int) -> None:
    golden = reference.load(name)
    config = EngineConfig(path=golden.folder, block_size=block_size, num_threads=1)
    runner = Runner(config, ModelConfig.load(golden.folder), rank=0)
    runner.allocate_cache(256, block_size)
    for number, prompt in enumerate(golden.prompts):
        logits = prefill_logits(runner, prompt, chunk)
        expected = torch.from_numpy(golden.answers[f"p{number}_prefill_logits"])
        torch.testing.assert_close(logits[-len(expected) :], expected, rtol=0, atol=1e-4)


def prefill_logits(runner: Runner, prompt: list[int], chunk: int) -> torch.Tensor:
    """Logits of every position of a prompt that runs in chunks, [tokens, vocabulary]."""
    size = runner.config.block_size
    scheduler = Scheduler(BlockPool(256), block_size=size, max_num_seqs=1, max_step_tokens=chunk)
    sequence = Sequence(id="prompt", tokens=prompt, prompt_len=len(prompt))
    scheduler.add(sequence)
    parts = []
    while sequence.num_pending:
        chunks = scheduler.schedule()
        planned = Batch.of(chunks, size)
        everything = np.arange(len(planned.token_ids), dtype=np.int32)
        parts.append(runner.lead(Batch(**{**vars(planned), "logit_rows": everything})))
        sequence.num_computed += chunks[0].num_tokens
    return torch.cat(parts)


@pytest.mark.parametrize("name", reference.NAMES)
@pytest.mark.parametrize(
    ("max_step_tokens", "block_size", "max_num_seqs"),
    list(itertools.product((4, 29, 512), (1, 5, 32), (1, 4))),
)
def test_greedy_tokens_equal_the_original(
    name: str, max_step_tokens: int, block_size: int, max_num_seqs: int
) -> None:
    golden = reference.load(name)
    expected = golden.tokens
    limit = ModelConfig.load(golden.folder).rope.max_position
    with LLM(
        golden.folder,
        block_size=block_size,
        max_step_tokens=max_step_tokens,
        max_num_seqs=max_num_seqs,
        max_model_len=256,
        num_threads=1,
    ) as llm:
        completions = llm.generate(golden.prompts, GREEDY)
    for prompt, completion, tokens in zip(golden.prompts, completions, expected, strict=True):
        if name in HELD_BASE and len(prompt) + len(tokens) > limit:
            assert completion.token_ids[0] == tokens[0]
        else:
            assert list(completion.token_ids) == tokens


@pytest.mark.parametrize("name", reference.NAMES)
def test_preempted_sequences_continue_as_if_nothing_had_been(name: str) -> None:
    """A cache that holds little more than the longest request: most sequences are preempted at least once."""
    golden = reference.load(name)
    if name in HELD_BASE:
        pytest.skip("its decoding past max_position is not the original's")
    prompts = [prompt for prompt in golden.prompts if len(prompt) <= 40]
    expected = [
        tokens for prompt, tokens in zip(golden.prompts, golden.tokens, strict=True) if prompt in prompts
    ]
    with LLM(
        golden.folder, block_size=4, max_model_len=64, kv_cache_bytes=one_request(golden, 64), num_threads=1
    ) as llm:
        completions = llm.generate(prompts * 3, GREEDY)
        assert llm.engine.stats().preemptions > 0
        assert llm.engine.stats().used_blocks == 0
    assert [list(completion.token_ids) for completion in completions] == expected * 3


def one_request(golden: reference.Golden, tokens: int) -> int:
    """Bytes of float32 cache for this many tokens and a few blocks more."""
    config = ModelConfig.load(golden.folder)
    return 2 * 4 * config.num_layers * config.num_kv_heads * config.head_dim * (tokens + 16)
