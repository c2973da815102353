"""attention="flash": each sequence has one contiguous stretch of the cache; same tokens, nothing shared."""

import pytest

from model import LLM, Engine, EngineConfig, Request, SamplingParams
from model.config import DeviceName
from model.errors import ConfigError
from tests.golden import reference

GREEDY = SamplingParams(max_tokens=reference.GENERATED, temperature=0, ignore_eos=True)
THOROUGH = pytest.mark.thorough


@pytest.mark.parametrize("name", reference.NAMES)
@pytest.mark.parametrize(
    ("step_tokens", "seqs"),
    [(64, 8), *(pytest.param(*sizes, marks=THOROUGH) for sizes in ((7, 3), (512, 1)))],
)
def test_tokens_equal_the_original(name: str, step_tokens: int, seqs: int, device: DeviceName) -> None:
    golden = reference.load(name)
    options = {"max_step_tokens": step_tokens, "max_num_seqs": seqs, "max_model_len": 200, "num_threads": 1}
    with LLM(golden.folder, device=device, attention="flash", **options) as llm:
        assert (llm.engine.stats().total_blocks, llm.engine.max_model_len) == (seqs, 200)
        for _ in range(2):
            completions = llm.generate(golden.prompts, GREEDY)
            for completion, tokens, count in zip(completions, golden.tokens, golden.comparable, strict=True):
                assert list(completion.token_ids)[:count] == tokens[:count]
                assert completion.cached_tokens == 0
        assert llm.engine.stats().preemptions == 0
        assert llm.engine.stats().used_blocks == 0


@pytest.mark.parametrize("attention", ["flash", "paged"])
def test_as_many_sequences_run_as_there_are_stretches(attention: str) -> None:
    """Also where a block is as long as the longest sequence: none will need another."""
    golden = reference.load("v2_gqa")
    sizes = {"block_size": 64, "max_model_len": 64, "max_num_seqs": 6, "num_threads": 1}
    config = EngineConfig(path=golden.folder, attention=attention, **sizes)
    engine = Engine(config)
    for number in range(8):
        prompt = (number + 5, *golden.prompts[0][1:])
        engine.add(Request(id=str(number), prompt_token_ids=prompt, params=GREEDY))
    engine.step()
    assert (engine.stats().running, engine.stats().waiting) == (6, 2)
    while engine.has_unfinished:
        engine.step()
    assert engine.stats().preemptions == 0


def test_a_budget_gives_fewer_stretches() -> None:
    golden = reference.load("v2_gqa")
    options = {"attention": "flash", "max_model_len": 128, "num_threads": 1}
    with LLM(golden.folder, kv_cache_bytes=golden.cache_bytes(128 * 2 + 100), **options) as llm:
        assert llm.engine.stats().total_blocks == 2
        assert [list(one.token_ids) for one in llm.generate(golden.prompts, GREEDY)] == golden.tokens
    with pytest.raises(ConfigError, match="fewer than one request of 128"):
        LLM(golden.folder, kv_cache_bytes=golden.cache_bytes(127), **options)


def test_the_longest_request_fills_its_stretch() -> None:
    golden = reference.load("v2_gqa")
    prompt, tokens = golden.prompts[3], golden.tokens[3]
    with LLM(golden.folder, attention="flash", max_model_len=120, max_num_seqs=2, num_threads=1) as llm:
        for completion in llm.generate([prompt] * 5, GREEDY):
            assert list(completion.token_ids) == tokens


def test_contiguous_caches_share_nothing() -> None:
    golden = reference.load("v2_gqa")
    with pytest.raises(ConfigError, match="prefix_caching needs attention paged"):
        EngineConfig(path=golden.folder, attention="flash", prefix_caching=True)
