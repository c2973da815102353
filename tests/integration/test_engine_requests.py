"""The engine's behaviour towards its requests: refusals, ends, seeds, log-probabilities, aborts."""

from collections.abc import Iterator

import pytest

from model import LLM, Completion, Engine, EngineConfig, Request, SamplingParams
from model.config import DeviceName
from model.errors import InvalidParams, InvalidPrompt, PromptTooLong, RequestError
from tests import devices
from tests.golden import reference
from tests.models import small_model

GREEDY = SamplingParams(max_tokens=reference.GENERATED, temperature=0, ignore_eos=True)


@pytest.fixture(scope="module")
def golden() -> reference.Golden:
    return reference.load("v2_gqa")


@pytest.fixture(scope="module")
def llm(golden: reference.Golden, device: DeviceName) -> Iterator[LLM]:
    options = devices.options(device, block_size=8, max_step_tokens=32, max_num_seqs=4)
    with LLM(golden.folder, **options) as llm:
        yield llm


@pytest.fixture
def engine(golden: reference.Golden, device: DeviceName) -> Engine:
    """One step after another, so that a test can count them; test_engine_overlap.py has the other way."""
    options = devices.options(device, overlap=False)
    return Engine(EngineConfig(path=golden.folder, max_model_len=128, **options))


def request(name: str, prompt: list[int], params: SamplingParams = GREEDY) -> Request:
    return Request(id=name, prompt_token_ids=tuple(prompt), params=params)


def run(engine: Engine) -> dict[str, Completion]:
    finished = {}
    while engine.has_unfinished:
        finished.update((completion.request_id, completion) for completion in engine.step())
    return finished


@pytest.mark.parametrize(
    ("prompt", "params", "error"),
    [
        ([], GREEDY, InvalidPrompt),
        ([5, 512], GREEDY, InvalidPrompt),
        ([5, -1], GREEDY, InvalidPrompt),
        ([5] * 105, GREEDY, PromptTooLong),
        ([5], SamplingParams(max_tokens=128), PromptTooLong),
        ([5], SamplingParams(max_tokens=8, stop=("x",)), InvalidParams),
    ],
)
def test_a_refused_request_leaves_the_others_alone(
    engine: Engine, golden: reference.Golden, prompt: list[int], params: SamplingParams, error: type
) -> None:
    engine.add(request("before", golden.prompts[0]))
    engine.step()
    with pytest.raises(error) as refused:
        engine.add(request("bad", prompt, params))
    assert "\n" not in str(refused.value)
    engine.add(request("after", golden.prompts[1]))
    finished = run(engine)
    assert finished.keys() == {"before", "after"}
    assert [list(finished[name].token_ids) for name in ("before", "after")] == golden.tokens[:2]


def test_the_longest_possible_request_runs(engine: Engine) -> None:
    engine.add(request("longest", [5] * 104))
    assert len(run(engine)["longest"].token_ids) == 24


def test_an_id_is_used_once_at_a_time(engine: Engine, golden: reference.Golden) -> None:
    engine.add(request("same", golden.prompts[0]))
    with pytest.raises(InvalidParams, match="'same' is in use"):
        engine.add(request("same", golden.prompts[1]))
    run(engine)
    engine.add(request("same", golden.prompts[1]))
    assert list(run(engine)["same"].token_ids) == golden.tokens[1]


def test_an_abort_at_any_moment_frees_what_it_held(engine: Engine, golden: reference.Golden) -> None:
    for name in ("waiting", "running", "kept"):
        engine.add(request(name, golden.prompts[2]))
    (aborted,) = engine.abort("waiting")
    assert (aborted.finish_reason, aborted.token_ids) == ("abort", ())
    for _ in range(5):
        engine.step()
    (aborted,) = engine.abort("running")
    assert list(aborted.token_ids) == golden.tokens[2][:5]
    assert engine.abort("running") == []
    assert engine.abort("unknown") == []
    assert list(run(engine)["kept"].token_ids) == golden.tokens[2]
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.used_blocks) == (0, 0, 0)
    assert (stats.prompt_tokens, stats.generated_tokens) == (80, 29)


@pytest.mark.parametrize("scored", [None, 0])
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_an_abort_ends_all_answers_to_a_request(
    engine: Engine, golden: reference.Golden, scored: int | None, steps: int
) -> None:
    params = SamplingParams(max_tokens=24, n=3, seed=1, ignore_eos=True, prompt_logprobs=scored)
    engine.add(request("many", golden.prompts[2], params))
    engine.add(request("kept", golden.prompts[1]))
    for _ in range(steps):
        engine.step()
    aborted = engine.abort("many")
    assert [(one.request_id, one.index, one.finish_reason) for one in aborted] == [
        ("many", index, "abort") for index in range(3)
    ]
    lengths = [len(one.token_ids) for one in aborted]
    assert lengths == ([steps] * 3 if scored is None or not steps else [steps, steps - 1, steps - 1])
    assert engine.abort("many") == []
    engine.add(request("many", golden.prompts[0]))
    finished = run(engine)
    assert [list(finished[name].token_ids) for name in ("many", "kept")] == golden.tokens[:2]
    assert engine.stats().used_blocks == 0


def test_progress_is_what_an_unfinished_answer_has_so_far(engine: Engine, golden: reference.Golden) -> None:
    engine.add(request("one", golden.prompts[0]))
    engine.add(request("many", golden.prompts[1], SamplingParams(max_tokens=9, n=2, seed=3, ignore_eos=True)))
    assert engine.progress("one") == ()
    seen = []
    finished = {}
    while engine.has_unfinished:
        finished.update(((one.request_id, one.index), one) for one in engine.step())
        if ("many", 1) not in finished:
            seen.append(engine.progress("many", 1))
    assert [len(tokens) for tokens in seen] == list(range(1, 9))
    assert seen[-1] == finished["many", 1].token_ids[:8]
    assert finished["many", 1].token_ids != finished["many", 0].token_ids
    for name, index in (("one", 0), ("many", 1), ("unknown", 0)):
        with pytest.raises(KeyError):
            engine.progress(name, index)


def test_an_answer_of_several_can_end_before_the_others(engine: Engine, golden: reference.Golden) -> None:
    """Each ends by itself; the id is in use until the last has."""
    stops = tuple(range(0, 512, 8))
    params = SamplingParams(max_tokens=24, n=4, seed=2, temperature=1.5, stop_token_ids=stops)
    engine.add(request("many", golden.prompts[0], params))
    ends = {}
    for step in range(30):
        for one in engine.step():
            ends[one.index] = step
        if len(ends) < 4:
            with pytest.raises(InvalidParams, match="in use"):
                engine.add(request("many", golden.prompts[0], params))
    assert sorted(ends) == [0, 1, 2, 3]
    assert len(set(ends.values())) > 1
    assert not engine.has_unfinished


def test_steps_without_work_do_nothing(engine: Engine) -> None:
    assert engine.step() == []
    assert engine.stats().steps == 0


def test_the_models_end_token_ends_unless_ignored(llm: LLM, golden: reference.Golden) -> None:
    stop = golden.tokens[0][3]
    first = golden.tokens[0].index(stop)
    params = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True, stop_token_ids=(stop,))
    (completion,) = llm.generate(golden.prompts[:1], params)
    assert completion.finish_reason == "stop"
    assert list(completion.token_ids) == golden.tokens[0][: first + 1]
    engine = llm.engine
    assert engine.stop_token_ids == {2}
    engine.stop_token_ids = frozenset({stop})
    try:
        (ended,) = llm.generate(golden.prompts[:1], SamplingParams(max_tokens=24, temperature=0))
        (ignored,) = llm.generate(golden.prompts[:1], GREEDY)
    finally:
        engine.stop_token_ids = frozenset({2})
    assert ended.token_ids == completion.token_ids
    assert (list(ignored.token_ids), ignored.finish_reason) == (golden.tokens[0], "length")


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(max_tokens=24, seed=5, ignore_eos=True),
        SamplingParams(max_tokens=24, seed=5, top_k=20, temperature=1.5, ignore_eos=True),
        SamplingParams(max_tokens=24, seed=5, top_p=0.8, ignore_eos=True),
    ],
)
def test_a_seed_gives_the_same_answer_alone_and_in_a_batch(
    llm: LLM, golden: reference.Golden, params: SamplingParams
) -> None:
    prompts = golden.prompts
    (alone,) = llm.generate(prompts[1:2], params)
    others = [SamplingParams(max_tokens=24, ignore_eos=True), params, GREEDY, GREEDY]
    together = llm.generate(prompts, others)
    assert together[1].token_ids == alone.token_ids
    assert list(together[3].token_ids) == golden.tokens[3]


def test_without_a_seed_answers_differ(llm: LLM, golden: reference.Golden) -> None:
    first, second = llm.generate(golden.prompts[:1] * 2, SamplingParams(max_tokens=24, ignore_eos=True))
    assert first.token_ids != second.token_ids


def test_logprobs_are_the_originals(llm: LLM, golden: reference.Golden) -> None:
    params = [SamplingParams(max_tokens=24, temperature=0, ignore_eos=True, logprobs=n) for n in (0, 3, 5)]
    completions = llm.generate(golden.prompts[:3], params)
    for number, (completion, own) in enumerate(zip(completions, params, strict=True)):
        records = completion.logprobs
        assert records
        assert [record.token_id for record in records] == golden.tokens[number]
        assert all(len(record.top) == own.logprobs for record in records)
        assert all(record.top[0][0] == record.token_id for record in records if record.top)
    logits = golden.answers["p1_gen_logits"][-1].astype("float64")
    expected = logits.max() - logits.max() - _log_sum_exp(logits - logits.max())
    records = completions[1].logprobs
    assert records
    assert records[-1].logprob == pytest.approx(expected, abs=1e-4)


def _log_sum_exp(values: "reference.np.ndarray") -> float:
    return float(reference.np.log(reference.np.exp(values).sum()))


def test_generate_refuses_all_or_nothing(llm: LLM, golden: reference.Golden) -> None:
    with pytest.raises(RequestError):
        llm.generate([golden.prompts[0], [9999]], GREEDY)
    assert not llm.engine.has_unfinished
    with pytest.raises(InvalidParams, match="2 prompts and 1 params"):
        llm.generate(golden.prompts[:2], [GREEDY])
    with pytest.raises(InvalidPrompt, match="need a tokenizer"):
        llm.generate(["text"])
    assert llm.generate([]) == []


@pytest.fixture(scope="module")
def real() -> Iterator[LLM]:
    with LLM(small_model(), max_model_len=256, num_threads=1, max_num_seqs=8) as llm:
        yield llm


@pytest.mark.slow
def test_a_stop_string_cuts_the_text_wherever_tokens_begin(real: LLM) -> None:
    prompt = "The first ten natural numbers in words are: one, two, three,"
    (free,) = real.generate([prompt], SamplingParams(max_tokens=24, temperature=0, ignore_eos=True))
    middle = len(free.text) // 2
    stops = [free.text[middle : middle + length] for length in (1, 3, 8)]
    params = [
        SamplingParams(max_tokens=24, temperature=0, ignore_eos=True, stop=("never there", stop))
        for stop in stops
    ]
    for completion, stop in zip(real.generate([prompt] * 3, params), stops, strict=True):
        assert completion.finish_reason == "stop"
        assert completion.text == free.text[: free.text.index(stop)]
        count = len(completion.token_ids)
        assert completion.token_ids == free.token_ids[:count]
        assert stop in real.engine.tokenizer.decode(free.token_ids[:count])
        assert stop not in real.engine.tokenizer.decode(free.token_ids[: count - 1])


@pytest.mark.slow
def test_text_messages_and_ids_meet_in_one_call(real: LLM) -> None:
    chat = real.engine.chat
    assert chat
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    ids = chat.encode(messages)
    params = SamplingParams(max_tokens=32, temperature=0)
    by_messages, by_ids, by_text = real.generate([messages, ids, "The capital of France is"], params)
    assert by_messages.token_ids == by_ids.token_ids
    assert by_messages.prompt_tokens == len(ids)
    assert by_messages.finish_reason == "stop"
    assert by_messages.token_ids[-1] in chat.stop_token_ids
    assert "<|im_end|>" not in by_messages.text
    assert "Paris" in by_messages.text
    assert "Paris" in by_text.text
