"""Steps that are planned while the one before them runs: the tokens are those of one step after another.

On a CPU nothing really overlaps, but the plans and their tokens are the same as on a device that runs behind.
"""

from pathlib import Path

import pytest

from model import LLM, Engine, EngineConfig, Request, SamplingParams
from tests.golden import reference

GREEDY = SamplingParams(max_tokens=reference.GENERATED, temperature=0, ignore_eos=True)


def llm_of(folder: Path, *, overlap: bool, **options: object) -> LLM:
    settings = {"max_model_len": 256, "num_threads": 1, "block_size": 4, **options}
    return LLM(folder, overlap=overlap, **settings)


@pytest.mark.parametrize("name", reference.NAMES)
@pytest.mark.parametrize("options", [{}, {"attention": "flash"}, {"max_step_tokens": 7, "max_num_seqs": 3}])
def test_greedy_tokens_equal_the_original(name: str, options: dict[str, object]) -> None:
    """Twice, so that blocks that were told of late are found the second time."""
    golden = reference.load(name)
    with llm_of(golden.folder, overlap=True, **options) as llm:
        for _ in range(2):
            completions = llm.generate(golden.prompts, GREEDY)
            for completion, tokens, count in zip(completions, golden.tokens, golden.comparable, strict=True):
                assert list(completion.token_ids)[:count] == tokens[:count]
        if "attention" not in options:
            spared = [min(len(own) // 4 * 4, len(own) - 1) for own in golden.prompts]
            assert [one.cached_tokens for one in completions] == spared


@pytest.mark.parametrize("world", [2, 4])
def test_other_ranks_read_the_tokens_that_rank_0_has_drawn(world: int) -> None:
    golden = reference.load("v2_gqa")
    with llm_of(golden.folder, overlap=True, tensor_parallel_size=world) as llm:
        completions = llm.generate(golden.prompts, GREEDY)
    assert [list(one.token_ids) for one in completions] == golden.tokens


def test_whoever_awaits_a_token_can_be_preempted() -> None:
    """With blocks of one token, so that the awaited one would be a block of its own, were it known."""
    golden = reference.load("v2_gqa")
    numbers = [number for number, prompt in enumerate(golden.prompts) if len(prompt) <= 40] * 3
    prompts = [golden.prompts[number] for number in numbers]
    options = {"max_model_len": 80, "kv_cache_bytes": golden.cache_bytes(80 + 16), "block_size": 1}
    for caching in (True, False):
        with llm_of(golden.folder, overlap=True, prefix_caching=caching, **options) as llm:
            completions = llm.generate(prompts, GREEDY)
            assert llm.engine.stats().preemptions > 0
            assert llm.engine.stats().used_blocks == 0
        assert [list(one.token_ids) for one in completions] == [golden.tokens[number] for number in numbers]


@pytest.mark.parametrize("block_size", [1, 5])
def test_an_answer_is_found_by_the_prompt_that_goes_on_with_it(block_size: int) -> None:
    """Its blocks were computed before their last token was known."""
    golden = reference.load("v2_gqa")
    prompt, tokens = golden.prompts[2], golden.tokens[2]
    computed = (len(prompt) + len(tokens) - 1) // block_size * block_size
    with llm_of(golden.folder, overlap=True, block_size=block_size) as llm:
        llm.generate([prompt], GREEDY)
        (completion,) = llm.generate([prompt + tokens], SamplingParams(max_tokens=1, temperature=0))
    assert completion.cached_tokens == computed


def test_no_step_is_for_an_answer_that_awaits_its_last_token() -> None:
    golden = reference.load("v2_gqa")
    with llm_of(golden.folder, overlap=True) as llm:
        llm.generate(golden.prompts[:1], GREEDY)
        assert llm.engine.stats().steps == reference.GENERATED


def test_drawn_penalized_and_stopped_answers_are_the_same() -> None:
    """Among others, so that steps that must wait for tokens follow steps that need not."""
    golden = reference.load("v2_gqa")
    params = [
        SamplingParams(max_tokens=9, seed=1, temperature=1.5, ignore_eos=True),
        SamplingParams(
            max_tokens=30, temperature=0, frequency_penalty=-2, presence_penalty=-2, ignore_eos=True
        ),
        SamplingParams(max_tokens=7, seed=3, top_p=0.7, top_k=40, n=3, ignore_eos=True),
        SamplingParams(max_tokens=20, temperature=0, stop_token_ids=tuple(golden.tokens[3][4:5])),
        SamplingParams(max_tokens=5, temperature=0, logprobs=2, prompt_logprobs=1, ignore_eos=True),
        SamplingParams(max_tokens=1, temperature=0),
    ]
    prompts = [golden.prompts[number % len(golden.prompts)] for number in range(len(params))]
    found = []
    for overlap in (False, True):
        with llm_of(golden.folder, overlap=overlap) as llm:
            found.append(llm.generate(prompts, params))
    for one, other in zip(*found, strict=True):
        assert one.token_ids == other.token_ids
        assert one.finish_reason == other.finish_reason
        assert [record.token_id for record in one.logprobs or ()] == [
            r.token_id for r in other.logprobs or ()
        ]
    assert {one.finish_reason for one in found[0]} == {"length", "stop"}


def test_whoever_went_on_with_a_wrong_guess_goes_back() -> None:
    """So flat that the likeliest tokens rarely are enough: a step begins with guesses that turn out wrong."""
    golden = reference.load("v2_gqa")
    prompts = golden.prompts * 3
    params = [
        SamplingParams(max_tokens=1 + number % 7, seed=number, temperature=20, top_p=0.9, ignore_eos=True)
        for number in range(len(prompts))
    ]
    found, steps = [], []
    for overlap in (False, True):
        with llm_of(golden.folder, overlap=overlap, max_num_seqs=5) as llm:
            found.append([one.token_ids for one in llm.generate(prompts, params)])
            steps.append(llm.engine.stats().steps)
            assert llm.engine.stats().used_blocks == 0
    assert found[0] == found[1]
    assert steps[1] > steps[0], "some were taken back"


def test_what_is_told_and_what_is_dropped_while_a_step_runs() -> None:
    """A step late, an answer is seen to be over; one that was aborted gets nothing more."""
    golden = reference.load("v2_gqa")
    engine = Engine(EngineConfig(path=golden.folder, overlap=True, max_model_len=256, num_threads=1))
    prompt, tokens = tuple(golden.prompts[3]), golden.tokens[3]
    for request_id in ("stops", "aborted"):
        stop = SamplingParams(max_tokens=20, temperature=0, stop_token_ids=(tokens[2],))
        engine.add(Request(id=request_id, prompt_token_ids=prompt, params=stop))
    assert engine.step() == []
    assert engine.progress("stops") == ()
    assert engine.step() == []
    assert engine.progress("stops") == tuple(tokens[:1])
    (aborted,) = engine.abort("aborted")
    assert aborted.token_ids == tuple(tokens[:1])
    engine.add(Request(id="aborted", prompt_token_ids=prompt, params=GREEDY))
    assert engine.step() == []
    assert engine.progress("aborted") == ()
    (stopped,) = engine.step()
    assert (stopped.finish_reason, stopped.token_ids) == ("stop", tuple(tokens[:3]))
    finished = []
    while engine.has_unfinished:
        finished += engine.step()
    assert [list(one.token_ids) for one in finished] == [tokens]
    stats = engine.stats()
    assert stats.generated_tokens == 1 + 3 + len(tokens)
    assert (stats.used_blocks, stats.running, stats.waiting) == (0, 0, 0)
