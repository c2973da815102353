"""Prompts that begin alike share the blocks of the cache: the original's tokens, whatever they find there."""

from collections.abc import Iterator

import pytest

from model import LLM, Completion, Engine, EngineConfig, Request, SamplingParams
from model.config import DeviceName
from tests import devices
from tests.golden import reference
from tests.models import small_model

GREEDY = SamplingParams(max_tokens=reference.GENERATED, temperature=0, ignore_eos=True)
LIMIT = 256
THOROUGH = pytest.mark.thorough


def llm_of(golden: reference.Golden, device: DeviceName, **options: object) -> LLM:
    settings = {"max_model_len": LIMIT, "max_num_seqs": 4, **options}
    return LLM(golden.folder, **devices.options(device, **settings))


def assert_original(golden: reference.Golden, completions: list[Completion], first: int = 0) -> None:
    """These are the continuations of the golden's prompts from `first` on."""
    for number, completion in enumerate(completions, first):
        count = golden.comparable[number]
        assert list(completion.token_ids)[:count] == golden.tokens[number][:count], golden.name


def spared(prompt: list[int], block_size: int) -> int:
    """Tokens that a prompt need not compute if all its full blocks are found."""
    return min(len(prompt) // block_size * block_size, len(prompt) - 1)


@pytest.mark.parametrize("name", reference.NAMES)
@pytest.mark.parametrize(
    ("block_size", "step_tokens"),
    [(8, 64), *(pytest.param(*sizes, marks=THOROUGH) for sizes in ((1, 512), (4, 7), (32, 512)))],
)
def test_a_second_time_all_is_found(name: str, block_size: int, step_tokens: int, device: DeviceName) -> None:
    golden = reference.load(name)
    with llm_of(golden, device, block_size=block_size, max_step_tokens=step_tokens) as llm:
        assert_original(golden, llm.generate(golden.prompts, GREEDY))
        again = llm.generate(golden.prompts, GREEDY)
        size = llm.engine.config.block_size
    assert_original(golden, again)
    assert [one.cached_tokens for one in again] == [spared(own, size) for own in golden.prompts]
    if size in (1, 8):
        assert any(one.cached_tokens == one.prompt_tokens - 1 for one in again), "a prompt is there entirely"


@pytest.mark.slow
def test_the_small_real_model_over_several_blocks(device: DeviceName) -> None:
    """Prompts that share 150 tokens, one of which is asked for twice, so that its last token is found.

    The blocks are as long as the longest that a device begins with. Answers equal the CPU's without sharing.
    """
    text = "The lighthouse keeper wrote down every ship that passed, its flag and its course. " * 9
    prompts = [text + "Which ships", text[:700], text + "Which ships"]
    params = SamplingParams(max_tokens=5, temperature=0, ignore_eos=True)
    options = {"dtype": "float32", "max_model_len": 512, "max_num_seqs": 4, "max_step_tokens": 192}
    with LLM(small_model(), prefix_caching=False, **devices.options("cpu", **options)) as llm:
        expected = [one.token_ids for one in llm.generate(prompts, params)]
    with LLM(small_model(), block_size=128, **devices.options(device, **options)) as llm:
        for _ in range(2):
            completions = llm.generate(prompts, params)
            assert [one.token_ids for one in completions] == expected
        assert all(one.cached_tokens for one in completions)


@THOROUGH
@pytest.mark.parametrize("name", reference.NAMES)
def test_the_same_step_is_found(name: str, device: DeviceName) -> None:
    """Each prompt four times at once: all but one compute the rest of a block."""
    golden = reference.load(name)
    for number, prompt in enumerate(golden.prompts):
        with llm_of(golden, device, block_size=8, max_step_tokens=512) as llm:
            completions = llm.generate([prompt] * 4, GREEDY)
            assert llm.engine.stats().steps == reference.GENERATED
        assert sorted(one.cached_tokens for one in completions) == [0] + [spared(prompt, 8)] * 3
        for completion in completions:
            assert_original(golden, [completion], number)


@THOROUGH
@pytest.mark.parametrize("name", reference.NAMES)
@pytest.mark.parametrize("step_tokens", [16, 512])
def test_prompts_after_others_that_begin_alike(name: str, step_tokens: int, device: DeviceName) -> None:
    """The others are cut and go on differently: where dynamic rope stretches, nothing of theirs is taken."""
    golden = reference.load(name)
    dynamic, most = golden.model.rope.kind == "dynamic", golden.model.rope.max_position
    others = [prompt[: len(prompt) * 2 // 3] + [7] * 5 for prompt in golden.prompts]
    short = SamplingParams(max_tokens=3, temperature=0, ignore_eos=True)
    with llm_of(golden, device, block_size=4, max_step_tokens=step_tokens) as llm:
        llm.generate(others, short)
        completions = llm.generate(golden.prompts, GREEDY)
        assert_original(golden, completions)
        llm.generate(others, short)
        assert_original(golden, llm.generate([*reversed(golden.prompts)], GREEDY)[::-1])
    for prompt, other, completion in zip(golden.prompts, others, completions, strict=True):
        alike = not dynamic or max(len(prompt), len(other)) <= most or len(prompt) == len(other)
        if not alike:
            assert completion.cached_tokens == 0
        elif len(prompt) > 8:
            assert completion.cached_tokens == len(prompt) * 2 // 3 // 4 * 4


@THOROUGH
@pytest.mark.parametrize("name", reference.NAMES)
def test_prompts_of_one_length_share_wherever_their_base_lies(name: str, device: DeviceName) -> None:
    golden = reference.load(name)
    others = [prompt[:-5] + [7] * 5 for prompt in golden.prompts]
    with llm_of(golden, device, block_size=4) as llm:
        llm.generate(others, GREEDY)
        completions = llm.generate(golden.prompts, GREEDY)
    assert_original(golden, completions)
    for prompt, completion in zip(golden.prompts, completions, strict=True):
        assert completion.cached_tokens == (len(prompt) - 5) // 4 * 4


@THOROUGH
@pytest.mark.parametrize("name", reference.NAMES)
def test_an_answer_is_found_by_the_prompt_that_goes_on_with_it(name: str, device: DeviceName) -> None:
    """Unless dynamic rope has turned it otherwise: a longer prompt is another prompt from max_position on."""
    golden = reference.load(name)
    dynamic, most = golden.model.rope.kind == "dynamic", golden.model.rope.max_position
    with llm_of(golden, device, block_size=4) as llm:
        assert_original(golden, llm.generate(golden.prompts, GREEDY))
        for prompt, tokens in zip(golden.prompts, golden.tokens, strict=True):
            longer = prompt + tokens[:20]
            if dynamic and len(longer) > most:
                longer = longer[:most]
            taken = len(longer) - len(prompt)
            if taken <= 0:
                continue
            rest = SamplingParams(max_tokens=reference.GENERATED - taken, temperature=0, ignore_eos=True)
            (completion,) = llm.generate([longer], rest)
            assert completion.cached_tokens == spared(longer, 4)
            held = dynamic and not golden.model.rope.grows
            count = min(reference.GENERATED - taken, most - len(longer) + 1 if held else LIMIT)
            assert list(completion.token_ids)[:count] == tokens[taken:][:count]


@THOROUGH
@pytest.mark.shared
@pytest.mark.parametrize("name", ["v2_dyn", "v3_dyn"])
def test_tokens_decoded_past_max_position_are_never_found(name: str, device: DeviceName) -> None:
    """They are turned each by a base of its own, and the longer prompt's tokens all by another."""
    golden = reference.load(name)
    number = [len(prompt) for prompt in golden.prompts].index(100)
    prompt, tokens = golden.prompts[number], golden.tokens[number]
    with llm_of(golden, device, block_size=1) as llm, llm_of(golden, device, prefix_caching=False) as without:
        llm.generate([prompt], GREEDY)
        for longer in (prompt + tokens[:1], prompt + tokens[:20]):
            (completion,) = llm.generate([longer], GREEDY)
            assert completion.cached_tokens == 0
            assert completion.token_ids == without.generate([longer], GREEDY)[0].token_ids


@THOROUGH
@pytest.mark.parametrize("name", reference.NAMES)
def test_without_prefix_caching_nothing_is_found(name: str, device: DeviceName) -> None:
    golden = reference.load(name)
    with llm_of(golden, device, prefix_caching=False, block_size=4) as llm:
        for _ in range(2):
            completions = llm.generate(golden.prompts * 2, GREEDY)
            assert_original(golden, completions[: len(golden.prompts)])
            assert_original(golden, completions[len(golden.prompts) :])
            assert not any(one.cached_tokens for one in completions)
        assert llm.engine.stats().cached_tokens == 0


@THOROUGH
@pytest.mark.parametrize("name", reference.NAMES)
@pytest.mark.parametrize("step_tokens", [9, 128])
def test_preempted_sequences_find_what_is_left_of_themselves(
    name: str, step_tokens: int, device: DeviceName
) -> None:
    """A cache of little more than the longest request, in which each prompt comes three times."""
    golden = reference.load(name)
    numbers = [number for number, prompt in enumerate(golden.prompts) if len(prompt) <= 40]
    with llm_of(
        golden,
        device,
        block_size=4,
        max_model_len=64,
        kv_cache_bytes=golden.cache_bytes(80),
        max_num_seqs=8,
        max_step_tokens=step_tokens,
    ) as llm:
        for _ in range(2):
            completions = llm.generate([golden.prompts[number] for number in numbers * 3], GREEDY)
            for number, completion in zip(numbers * 3, completions, strict=True):
                assert_original(golden, [completion], number)
        stats = llm.engine.stats()
    assert stats.preemptions > 0
    assert stats.cached_tokens > 0
    assert stats.used_blocks == 0
    assert stats.prompt_tokens == 6 * sum(len(golden.prompts[number]) for number in numbers)


@pytest.fixture
def engine(device: DeviceName) -> Iterator[Engine]:
    golden = reference.load("v2_gqa")
    options = devices.options(device, block_size=8, max_model_len=LIMIT)
    config = EngineConfig(path=golden.folder, **options)
    engine = Engine(config)
    yield engine
    engine.close()


def run(engine: Engine) -> dict[tuple[str, int], Completion]:
    finished = {}
    while engine.has_unfinished:
        finished.update(((one.request_id, one.index), one) for one in engine.step())
    return finished


@THOROUGH
def test_n_answers_prefill_the_prompt_once(engine: Engine) -> None:
    golden = reference.load("v2_gqa")
    prompt = golden.prompts[2]
    assert len(prompt) == 40
    sampled = {"max_tokens": 12, "temperature": 1.0, "seed": 5, "ignore_eos": True}
    engine.add(Request(id="one", prompt_token_ids=tuple(golden.prompts[2]), params=SamplingParams(**sampled)))
    alone = run(engine)["one", 0]
    before = engine.stats()
    other = Engine(engine.config)
    other.add(Request(id="n", prompt_token_ids=tuple(prompt), params=SamplingParams(n=3, **sampled)))
    answers = run(other)
    assert answers.keys() == {("n", 0), ("n", 1), ("n", 2)}
    assert answers["n", 0].token_ids == alone.token_ids
    assert len({answer.token_ids for answer in answers.values()}) == 3
    assert [answers["n", index].cached_tokens for index in range(3)] == [0, 39, 39]
    stats = other.stats()
    assert (stats.prompt_tokens, stats.cached_tokens, stats.generated_tokens) == (120, 78, 36)
    assert stats.steps == before.steps == 12
    assert stats.used_blocks == 0


@THOROUGH
def test_an_instruction_in_front_of_many_texts_is_computed_once(device: DeviceName) -> None:
    """In chunks and within steps; the counters say so, and the answers are those without sharing."""
    golden = reference.load("v2_gqa")
    prefix = golden.prompts[3]
    prompts = [[*prefix, 10 + number, 20 + number, 30] for number in range(20)]
    options = {"block_size": 8, "max_step_tokens": 24, "max_num_seqs": 6}
    with (
        llm_of(golden, device, **options) as llm,
        llm_of(golden, device, prefix_caching=False, **options) as without,
    ):
        completions = llm.generate(prompts, GREEDY)
        expected = without.generate(prompts, GREEDY)
        stats = llm.engine.stats()
    assert [one.token_ids for one in completions] == [one.token_ids for one in expected]
    assert len(prefix) == 96
    assert stats.prompt_tokens - stats.cached_tokens == 96 + 20 * 3


@THOROUGH
def test_a_block_that_was_reused_is_not_found(device: DeviceName) -> None:
    """More prompts than the cache holds, again and again, in an order that evicts the one that comes next."""
    golden = reference.load("v2_gqa")
    with llm_of(
        golden, device, block_size=4, max_model_len=128, kv_cache_bytes=golden.cache_bytes(150)
    ) as llm:
        for _ in range(3):
            for number, prompt in enumerate(golden.prompts):
                assert_original(golden, llm.generate([prompt], GREEDY), number)
                llm.generate([[9, number, *prompt[:70]]], SamplingParams(max_tokens=2, temperature=0))


@THOROUGH
@pytest.mark.parametrize("prefix_caching", [True, False])
def test_the_counters_count_a_prompt_once_however_often_it_is_prefilled(
    *, prefix_caching: bool, device: DeviceName
) -> None:
    """Chunks of 17 tokens end with a prompt of 17 also when its answer is computed anew after it."""
    golden = reference.load("v2_gqa")
    prompts = [golden.prompts[2], golden.prompts[1], golden.prompts[1]]
    with llm_of(
        golden,
        device,
        block_size=1,
        max_model_len=64,
        kv_cache_bytes=golden.cache_bytes(70),
        max_step_tokens=17,
        prefix_caching=prefix_caching,
    ) as llm:
        completions = llm.generate(prompts, GREEDY)
        stats = llm.engine.stats()
    assert stats.preemptions > 0
    assert [list(one.token_ids) for one in completions] == [golden.tokens[n] for n in (2, 1, 1)]
    assert stats.prompt_tokens == sum(map(len, prompts))
    assert stats.cached_tokens == sum(one.cached_tokens for one in completions)
