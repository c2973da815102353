"""Long prompts: memory linear in tokens, the same answer in whatever chunks, rope stretched by an option."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.long_prompt import (
    HEAD_DIM,
    HEADS,
    HIDDEN,
    INNER,
    KV_HEADS,
    MAX_POSITION,
    TOKEN_BYTES,
    VOCABULARY,
    make_checkpoint,
    prompt,
)
from model import LLM, SamplingParams

ROOT = Path(__file__).parents[2]
#: The whole distribution at each of 8 positions.
WATCHED = SamplingParams(
    max_tokens=8, temperature=0, ignore_eos=True, logprobs=0, logprob_token_ids=tuple(range(VOCABULARY))
)
#: Rows of scores that are computed at a time; each has a number for every token before, twice: the scores
#: and their softmax.
SCORE_ROWS = 64
#: What one more token may cost: its keys and values, in the cache and gathered; scores; its places in lists.
BYTES_PER_TOKEN = 2 * TOKEN_BYTES + 2 * SCORE_ROWS * HEADS * 4 + 100


def measured(tokens: int) -> dict[str, int]:
    command = [sys.executable, "-m", "benchmarks.long_prompt", str(tokens), "--chunk", "2048"]
    done = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
    result: dict[str, int] = json.loads(done.stdout)
    return result


def test_memory_is_linear_in_the_tokens_of_a_prompt() -> None:
    """From 4K to 16K tokens: a mask of chunk x context alone would take 100 MB more, a whole one 1 GB."""
    short, long = measured(4096), measured(16384)
    growth = long["peak_bytes"] - short["peak_bytes"]
    assert growth < 12288 * BYTES_PER_TOKEN < 20e6
    assert long["peak_bytes"] - long["peak_bytes_before"] > long["cache_bytes"], "the prompt was computed"


def distributions(path: Path, tokens: int, **options: object) -> tuple[tuple[int, ...], np.ndarray]:
    """The answer and the log-probabilities of all tokens at each of its positions."""
    settings = {"max_model_len": 20_000, "max_num_seqs": 1, "num_threads": 1, **options}
    with LLM(path, **settings) as llm:
        (answer,) = llm.generate([prompt(tokens)], WATCHED)
    assert answer.logprobs is not None
    return answer.token_ids, np.array([[value for _, value in record.asked] for record in answer.logprobs])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("long") / "model")


@pytest.mark.parametrize(
    "options",
    [
        {"max_step_tokens": 2048},
        {"max_step_tokens": 1500, "block_size": 7},
        {"max_step_tokens": 4096, "attention": "flash"},
    ],
)
def test_chunks_do_not_change_the_logits(checkpoint: Path, options: dict[str, object]) -> None:
    whole = distributions(checkpoint, 16_384, rope_scaling="dynamic:2.0", max_step_tokens=16_384)
    chunked = distributions(checkpoint, 16_384, rope_scaling="dynamic:2.0", **options)
    assert chunked[0] == whole[0]
    np.testing.assert_allclose(chunked[1], whole[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("tokens", [MAX_POSITION - 4, 6000])
def test_rope_scaling_by_an_option_equals_that_of_config_json(
    checkpoint: Path, tmp_path: Path, tokens: int
) -> None:
    stored = make_checkpoint(tmp_path / "scaled", rope_scaling={"type": "dynamic", "factor": 2.0})
    expected = distributions(stored, tokens)
    optional = distributions(checkpoint, tokens, rope_scaling="dynamic:2.0")
    assert optional[0] == expected[0]
    np.testing.assert_array_equal(optional[1], expected[1])
    plain = distributions(checkpoint, tokens)
    assert np.abs(plain[1] - expected[1]).max() > 1e-3


@torch.inference_mode()
def test_a_prompt_past_max_position_is_transformers(checkpoint: Path) -> None:
    """Its own dynamic rope, over the whole prompt at once."""
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            intermediate_size=INNER,
            num_hidden_layers=1,
            num_attention_heads=HEADS,
            num_key_value_heads=KV_HEADS,
            head_dim=HEAD_DIM,
            rms_norm_eps=1e-5,
            max_position_embeddings=MAX_POSITION,
            rope_parameters=rope,
        )
    ).eval()
    llama.load_state_dict(load_file(checkpoint / "model.safetensors"))
    last = llama(torch.tensor([prompt(6000)]), logits_to_keep=1).logits[0, -1]
    _, found = distributions(checkpoint, 6000, rope_scaling="dynamic:2.0", max_step_tokens=1000)
    np.testing.assert_allclose(found[0], last.log_softmax(-1).numpy(), rtol=0, atol=1e-4)


def test_beyond_max_position_only_what_is_asked_for(checkpoint: Path) -> None:
    """Without max_model_len the model's own limit holds, scaled or not."""
    with LLM(checkpoint, rope_scaling="dynamic:2.0", num_threads=1, max_num_seqs=1) as llm:
        assert llm.engine.max_model_len == MAX_POSITION
