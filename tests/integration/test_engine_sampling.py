"""Log-probabilities, penalties, bans and seeds through the whole engine, against the original's logits.

What is expected is worked out here token by token in numpy, apart from the engine's own arithmetic.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from model import LLM, Completion, SamplingParams, TokenLogprob
from model.config import DeviceName
from tests import devices
from tests.golden import reference
from tests.golden.formulas import log_softmax, penalized

Golden = reference.Golden
CLOSE = 1e-4


def params_of(**options: object) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 1, "temperature": 0, "ignore_eos": True, **options})


def assert_prompt_scores(golden: Golden, number: int, completion: Completion, count: int) -> None:
    """One for each token but the first; the last of them are in the golden."""
    prompt, records = golden.prompts[number], completion.prompt_logprobs
    assert records is not None
    assert [record.token_id for record in records] == prompt[1:]
    expected = log_softmax(golden.prefill_logits(number))[:-1]
    assert len(records) >= len(expected) > 0
    for record, row in zip(records[-len(expected) :], expected, strict=True):
        assert record.logprob == pytest.approx(row[record.token_id], abs=CLOSE)
        assert [value for _, value in record.top] == pytest.approx(sorted(row)[::-1][:count], abs=CLOSE)
        assert all(value == pytest.approx(row[token], abs=CLOSE) for token, value in record.top)


@pytest.mark.parametrize("name", reference.NAMES)
@pytest.mark.parametrize(
    "options",
    [
        {"max_step_tokens": 4, "block_size": 1},
        {"max_step_tokens": 29, "block_size": 5},
        {"max_step_tokens": 512, "block_size": 32, "prefix_caching": False},
        {"max_step_tokens": 64, "attention": "flash"},
    ],
)
def test_prompt_logprobs_are_the_originals(name: str, options: dict[str, object]) -> None:
    """Whatever the chunks, twice: what is cached is computed anew where it is scored."""
    golden = reference.load(name)
    with LLM(golden.folder, max_model_len=200, max_num_seqs=4, num_threads=1, **options) as llm:
        for count in (0, 3):
            completions = llm.generate(golden.prompts, params_of(prompt_logprobs=count))
            for number, completion in enumerate(completions):
                assert_prompt_scores(golden, number, completion, count)
                assert completion.token_ids[0] == golden.tokens[number][0]
                assert completion.cached_tokens == 0


@pytest.fixture(scope="module")
def golden() -> Golden:
    return reference.load("v2_gqa")


@pytest.fixture(scope="module")
def llm(golden: Golden, device: DeviceName) -> Iterator[LLM]:
    options = devices.options(device, block_size=8, max_step_tokens=64, max_num_seqs=8)
    with LLM(golden.folder, **options) as llm:
        yield llm


def test_prompts_that_are_scored_share_with_those_that_are_not(llm: LLM, golden: Golden) -> None:
    for number, prompt in enumerate(golden.prompts):
        plain, scored = params_of(max_tokens=24), params_of(max_tokens=24, prompt_logprobs=2)
        completions = llm.generate([prompt] * 4, [plain, scored, plain, scored])
        assert [list(one.token_ids) for one in completions] == [golden.tokens[number]] * 4
        for completion in completions[1::2]:
            assert_prompt_scores(golden, number, completion, 2)
        assert [one.prompt_logprobs for one in completions[::2]] == [None, None]


def test_preempted_prompts_are_scored_once(golden: Golden) -> None:
    numbers = [2, 1, 2, 0, 2]
    with LLM(
        golden.folder,
        block_size=4,
        max_model_len=64,
        kv_cache_bytes=golden.cache_bytes(100),
        max_num_seqs=5,
        max_step_tokens=11,
        num_threads=1,
    ) as llm:
        completions = llm.generate(
            [golden.prompts[number] for number in numbers], params_of(max_tokens=24, prompt_logprobs=1)
        )
        assert llm.engine.stats().preemptions > 0
    for number, completion in zip(numbers, completions, strict=True):
        assert list(completion.token_ids) == golden.tokens[number]
        assert_prompt_scores(golden, number, completion, 1)


@pytest.mark.parametrize("options", [{}, {"prefix_caching": False}, {"attention": "flash"}])
@pytest.mark.parametrize("length", [1, 30, 257, 260, 300])
def test_n_answers_to_a_scored_prompt_have_all_its_scores(
    golden: Golden, options: dict[str, object], length: int
) -> None:
    """Also those that end before the first answer's prompt is scored, a part at a time."""
    prompt = [1] + [(7 * place) % 500 + 3 for place in range(length - 1)]
    with LLM(golden.folder, max_model_len=512, max_num_seqs=8, num_threads=1, **options) as llm:
        (alone,) = llm.generate([prompt], params_of(prompt_logprobs=1))
        sampled = params_of(prompt_logprobs=1, n=3, temperature=1.0, seed=1)
        answers = llm.generate([prompt], sampled)
        assert not llm.engine.has_unfinished
    assert [answer.index for answer in answers] == [0, 1, 2]
    assert alone.prompt_logprobs is not None
    assert len(alone.prompt_logprobs) == length - 1
    for answer in answers:
        assert answer.prompt_logprobs is not None
        assert values(answer.prompt_logprobs) == pytest.approx(values(alone.prompt_logprobs), abs=CLOSE)


def values(records: Sequence[TokenLogprob]) -> list[float]:
    return [record.logprob for record in records]


def test_logprobs_of_tokens_that_are_asked_for(llm: LLM, golden: Golden) -> None:
    """Whatever their rank, in the order asked, of the model's own distribution."""
    asked = [(5, 511, 0), (), (7,), tuple(range(64))]
    wanted = [
        params_of(max_tokens=24, logprobs=count, logprob_token_ids=own)
        for own, count in zip(asked, (0, 2, 1, 0), strict=True)
    ]
    for number, completion in enumerate(llm.generate(golden.prompts, wanted)):
        assert completion.logprobs is not None
        assert [record.token_id for record in completion.logprobs] == golden.tokens[number]
        rows = log_softmax(golden.answers[f"p{number}_gen_logits"])
        for record, row in zip(completion.logprobs, rows, strict=True):
            assert record.logprob == pytest.approx(row[record.token_id], abs=CLOSE)
            assert [token for token, _ in record.asked] == list(asked[number])
            assert [value for _, value in record.asked] == pytest.approx(row[list(asked[number])], abs=CLOSE)


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.5},
        {"repetition_penalty": 0.4},
        {"presence_penalty": -2.0},
        {"repetition_penalty": 1.001, "presence_penalty": -2.0},
        {"frequency_penalty": -2.0, "presence_penalty": 1.0},
        {"repetition_penalty": 1.3, "frequency_penalty": 0.7, "presence_penalty": 0.5},
    ],
)
def test_penalties_change_the_logits_as_the_formulas_say(
    llm: LLM, golden: Golden, options: dict[str, float]
) -> None:
    """As far as the answer is the original's, whose logits are known, and the token that departs from it."""
    params = params_of(max_tokens=24, logprobs=0, **options)
    compared = 0
    for number, completion in enumerate(llm.generate(golden.prompts, params)):
        prompt, tokens = golden.prompts[number], golden.tokens[number]
        for step, logits in enumerate(golden.answers[f"p{number}_gen_logits"]):
            expected = penalized(logits, prompt, tokens[:step], params)
            token = completion.token_ids[step]
            assert expected[token] > expected.max() - CLOSE
            assert completion.logprobs is not None
            # What is told is the model's own distribution.
            assert completion.logprobs[step].logprob == pytest.approx(log_softmax(logits)[token], abs=CLOSE)
            compared += 1
            if token != tokens[step]:
                break
    assert compared >= len(golden.prompts)


def test_penalized_and_plain_rows_do_not_meet(llm: LLM, golden: Golden) -> None:
    harsh = params_of(max_tokens=24, repetition_penalty=5.0, presence_penalty=2.0, min_tokens=24)
    prompts = [golden.prompts[2], golden.prompts[2], golden.prompts[1]]
    plain = params_of(max_tokens=24)
    completions = llm.generate(prompts, [harsh, plain, plain])
    assert list(completions[1].token_ids) == golden.tokens[2]
    assert list(completions[2].token_ids) == golden.tokens[1]
    assert completions[0].token_ids != completions[1].token_ids


@pytest.mark.parametrize("least", [0, 1, 2, 5, 24])
def test_no_stop_token_before_min_tokens(llm: LLM, golden: Golden, least: int) -> None:
    """All tokens of the original's answer are stops: before that, the likeliest other comes instead."""
    number = 1
    tokens, logits = golden.tokens[number], golden.answers[f"p{number}_gen_logits"]
    stops = tuple(set(tokens))
    params = params_of(max_tokens=24, min_tokens=least, stop_token_ids=stops, logprobs=0)
    (completion,) = llm.generate([golden.prompts[number]], params)
    if least == 0:
        assert (completion.token_ids, completion.finish_reason) == ((tokens[0],), "stop")
        return
    banned = logits[0].copy()
    banned[list(stops)] = -math.inf
    assert completion.token_ids[0] == banned.argmax()
    assert not set(completion.token_ids[:least]) & set(stops)
    if completion.finish_reason == "stop":
        assert completion.token_ids[-1] in stops
        assert len(completion.token_ids) > least
    else:
        assert len(completion.token_ids) == 24


def test_min_tokens_bans_only_what_would_end_this_answer(llm: LLM, golden: Golden) -> None:
    """The model's own end token as well, but not where it is ignored."""
    number, engine = 2, llm.engine
    tokens = golden.tokens[number]
    own = engine.stop_token_ids
    engine.stop_token_ids = frozenset({tokens[0]})
    try:
        ended, ignored = (
            llm.generate(
                [golden.prompts[number]],
                params_of(max_tokens=24, min_tokens=3, ignore_eos=ignore),
            )[0]
            for ignore in (False, True)
        )
    finally:
        engine.stop_token_ids = own
    assert list(ignored.token_ids) == tokens
    banned = golden.answers[f"p{number}_gen_logits"][0].copy()
    banned[tokens[0]] = -math.inf
    assert ended.token_ids[0] == banned.argmax()


def test_top_k_of_one_and_min_p_of_one_are_greedy(llm: LLM, golden: Golden) -> None:
    for options in ({"top_k": 1}, {"min_p": 1.0}, {"top_p": 1e-6}):
        params = params_of(max_tokens=24, temperature=3.0, **options)
        assert [list(one.token_ids) for one in llm.generate(golden.prompts, params)] == golden.tokens


@pytest.mark.thorough
def test_answers_are_drawn_from_the_originals_distribution(llm: LLM, golden: Golden) -> None:
    """1,280 first tokens at temperature 0.7: no count is further than 5 deviations from what is due."""
    number, draws = 0, 1280
    params = [params_of(temperature=0.7, n=128, seed=seed, logprobs=0) for seed in range(draws // 128)]
    answers = llm.generate([golden.prompts[number]] * len(params), params)
    counts = Counter(answer.token_ids[0] for answer in answers)
    chances = np.exp(log_softmax(golden.answers[f"p{number}_gen_logits"][0] / 0.7))
    assert sum(counts.values()) == draws
    for token, chance in enumerate(chances):
        assert abs(counts[token] - draws * chance) <= 5 * math.sqrt(draws * chance * (1 - chance)) + 1


def test_a_seeded_request_of_n_is_the_same_in_any_company(llm: LLM, golden: Golden) -> None:
    sampled = params_of(max_tokens=12, temperature=1.2, top_p=0.9, n=3, seed=9)
    alone = llm.generate([golden.prompts[1]], sampled)
    others = params_of(max_tokens=20, temperature=1.0)
    together = llm.generate(
        [golden.prompts[3], golden.prompts[1], golden.prompts[0]], [others, sampled, others]
    )
    assert [one.token_ids for one in together[1:4]] == [one.token_ids for one in alone]
    assert len({one.token_ids for one in alone}) == 3
