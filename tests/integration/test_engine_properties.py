"""Random arrivals, aborts and tiny caches: a request gets the greedy tokens that it gets alone."""

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from model import Engine, EngineConfig, Request, SamplingParams
from model.config import ModelConfig
from tests.golden import reference

GOLDEN = reference.load("v2_gqa")
MODEL = ModelConfig.load(GOLDEN.folder)
TOKEN_BYTES = 2 * 4 * MODEL.num_layers * MODEL.num_kv_heads * MODEL.head_dim
LONGEST = max(map(len, GOLDEN.prompts)) + reference.GENERATED


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request: its prompt, its tokens, its step, and when its caller gives up, if ever."""

    prompt: int
    generated: int
    step: int
    abort_at: int | None


ARRIVALS = st.lists(
    st.builds(
        Arrival,
        prompt=st.integers(0, len(GOLDEN.prompts) - 1),
        generated=st.integers(1, reference.GENERATED),
        step=st.integers(0, 25),
        abort_at=st.none() | st.integers(0, 60),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(
    arrivals=ARRIVALS,
    block_size=st.integers(1, 9),
    spare_tokens=st.integers(0, 60),
    seqs=st.integers(1, 5),
    step_tokens=st.integers(5, 100),
)
def test_greedy_tokens_do_not_depend_on_what_else_runs(
    arrivals: list[Arrival], block_size: int, spare_tokens: int, seqs: int, step_tokens: int
) -> None:
    engine = Engine(
        EngineConfig(
            path=GOLDEN.folder,
            block_size=block_size,
            kv_cache_bytes=TOKEN_BYTES * (LONGEST + block_size + spare_tokens),
            max_model_len=LONGEST,
            max_num_seqs=seqs,
            max_step_tokens=step_tokens,
            num_threads=1,
        )
    )
    completions = {}
    for step in range(10_000):
        for number, arrival in enumerate(arrivals):
            if arrival.step == step:
                engine.add(request(str(number), arrival))
            if arrival.abort_at == step and (aborted := engine.abort(str(number))):
                completions[number] = aborted[0]
        completions.update((int(one.request_id), one) for one in engine.step())
        if len(completions) == len(arrivals):
            break
    assert len(completions) == len(arrivals)
    assert (engine.stats().used_blocks, engine.stats().running, engine.stats().waiting) == (0, 0, 0)
    for number, completion in completions.items():
        arrival = arrivals[number]
        expected = GOLDEN.tokens[arrival.prompt][: arrival.generated]
        if completion.finish_reason == "abort":
            assert list(completion.token_ids) == expected[: len(completion.token_ids)]
        else:
            assert list(completion.token_ids) == expected


def request(name: str, arrival: Arrival) -> Request:
    params = SamplingParams(max_tokens=arrival.generated, temperature=0, ignore_eos=True)
    return Request(id=name, prompt_token_ids=tuple(GOLDEN.prompts[arrival.prompt]), params=params)
