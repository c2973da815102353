"""The whole engine on a simulated chip gives the CPU's tokens, exactly: in float32, which no chip has.

So a difference is one of what is computed and not of how it is rounded. The golden checkpoints' tokens are
the original code's, which the CPU gives too.
"""

import itertools

import pytest

from model import LLM, SamplingParams
from model.devices import npu_int8
from model.devices.npu_chips import is_available, this_chip
from tests.golden import reference
from tests.models import small_model
from tests.npu import emulation

GREEDY = SamplingParams(max_tokens=reference.GENERATED, temperature=0, ignore_eos=True)
OPTIONS = {
    "device": "npu",
    "dtype": "float32",
    "max_model_len": 256,
    "kv_cache_bytes": 2**26,
    "num_threads": 1,
}


@pytest.mark.parametrize("attention", ["paged", "flash"])
@pytest.mark.parametrize("name", reference.NAMES)
def test_tokens_equal_the_original(name: str, attention: str) -> None:
    """Chunks of 40 tokens: prompts with and without a past, and decoding, in one step."""
    golden = reference.load(name)
    with LLM(golden.folder, attention=attention, max_step_tokens=40, max_num_seqs=8, **OPTIONS) as llm:
        found = [list(one.token_ids) for one in llm.generate(golden.prompts, GREEDY)]
    for tokens, expected, count in zip(found, golden.tokens, golden.comparable, strict=True):
        assert tokens[:count] == expected[:count]


@pytest.mark.parametrize("attention", ["paged", "flash"])
def test_the_small_real_model_over_several_pages(attention: str) -> None:
    """Prompts that share 150 tokens, one of which is asked for twice, so that its last token is found."""
    text = "The lighthouse keeper wrote down every ship that passed, its flag and its course. " * 9
    prompts = [text + "Which ships", text[:700], text + "Which ships"]
    params = SamplingParams(max_tokens=5, temperature=0, ignore_eos=True)
    options = {"max_model_len": 512, "max_num_seqs": 4, "max_step_tokens": 192, "kv_cache_bytes": 2**27}
    with LLM(small_model(), dtype="float32", **options) as llm:
        expected = [one.token_ids for one in llm.generate(prompts, params)]
    before = emulation.current[0].calls.copy()
    with LLM(small_model(), attention=attention, **{**OPTIONS, **options}) as llm:
        for _ in range(1 if attention == "flash" else 2):
            completions = llm.generate(prompts, params)
            assert [one.token_ids for one in completions] == expected
        if attention == "paged":
            assert all(one.cached_tokens for one in completions)
    used = {name.partition("::")[2] for name in emulation.current[0].calls - before}
    wanted = {name for name in this_chip().operations if is_available(name)}
    wanted -= {
        "npu_mm_all_reduce_base",
        *itertools.chain(*npu_int8.OPERATIONS.values()),
        *(["npu_apply_rotary_pos_emb", "npu_format_cast"] if is_a2() else []),
    }
    assert used <= wanted
    # With prefixes shared, a step of whole prompts alone may not come about.
    assert wanted - used <= {"_npu_flash_attention"}


def is_a2() -> bool:
    return this_chip().name == "910B"
