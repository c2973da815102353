"""Random arrivals, aborts and tiny caches: a request gets the greedy tokens that it gets alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from hypothesis import given, settings
from hypothesis import strategies as st

from model import LLM, Completion, Engine, EngineConfig, Request, SamplingParams
from tests.golden import reference

GOLDEN = reference.load("v2_gqa")
TOKEN_BYTES = GOLDEN.cache_bytes(1)
LONGEST = max(map(len, GOLDEN.prompts)) + reference.GENERATED
#: The golden's own, two that share their beginnings, and the same prompt a block of 8 shorter.
PROMPTS = [
    *GOLDEN.prompts,
    [*GOLDEN.prompts[2][:25], 7, 8, 9],
    [*GOLDEN.prompts[3][:64], 5],
    GOLDEN.prompts[3][:88],
]


@cache
def expected(prompt: int) -> list[int]:
    """The original's tokens, or for other prompts what the engine answers to them alone."""
    if prompt < len(GOLDEN.tokens):
        return GOLDEN.tokens[prompt]
    params = SamplingParams(max_tokens=reference.GENERATED, temperature=0, ignore_eos=True)
    with LLM(GOLDEN.folder, prefix_caching=False, max_num_seqs=1, num_threads=1) as llm:
        return list(llm.generate([PROMPTS[prompt]], params)[0].token_ids)


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request: its prompt, its tokens, its step, when its caller gives up, if ever, and more."""

    prompt: int
    generated: int
    step: int
    abort_at: int | None
    scored: bool
    n: int
    #: Which of its tokens it is to stop at, if any.
    stop: int | None
    #: Whether log-probabilities of its tokens are wanted.
    watched: bool

    @property
    def params(self) -> SamplingParams:
        """Greedy, if it asks for several answers by the narrowest top_k."""
        return SamplingParams(
            max_tokens=self.generated,
            temperature=0 if self.n == 1 else 1,
            top_k=1,
            n=self.n,
            ignore_eos=True,
            stop_token_ids=() if self.stop is None else (expected(self.prompt)[self.stop],),
            logprobs=0 if self.watched else None,
            prompt_logprobs=0 if self.scored else None,
        )

    @property
    def answer(self) -> list[int]:
        """The tokens that it gets unless it is aborted."""
        tokens = expected(self.prompt)
        end = len(tokens) if self.stop is None else tokens.index(tokens[self.stop]) + 1
        return tokens[: min(self.generated, end)]


ARRIVALS = st.lists(
    st.builds(
        Arrival,
        prompt=st.integers(0, len(PROMPTS) - 1),
        generated=st.integers(1, reference.GENERATED),
        step=st.integers(0, 25),
        abort_at=st.none() | st.integers(0, 60),
        scored=st.sampled_from([False, False, True]),
        n=st.sampled_from([1, 1, 1, 3]),
        stop=st.none() | st.integers(0, reference.GENERATED - 1),
        watched=st.sampled_from([False, False, False, True]),
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
    mode=st.sampled_from([{}, {}, {"prefix_caching": False}, {"attention": "flash"}]),
    overlap=st.booleans(),
)
def test_greedy_tokens_do_not_depend_on_what_else_runs(
    *,
    arrivals: list[Arrival],
    block_size: int,
    spare_tokens: int,
    seqs: int,
    step_tokens: int,
    mode: dict[str, object],
    overlap: bool,
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
            overlap=overlap,
            **mode,
        )
    )
    completions = {(int(one.request_id), one.index): one for one in served(engine, arrivals)}
    assert len(completions) == sum(arrival.n for arrival in arrivals)
    stats = engine.stats()
    assert (stats.used_blocks, stats.running, stats.waiting) == (0, 0, 0)
    for (number, _), completion in completions.items():
        check(arrivals[number], completion)
    done = [one for one in completions.values() if one.finish_reason != "abort"]
    assert stats.prompt_tokens >= sum(one.prompt_tokens for one in done)
    assert stats.cached_tokens >= sum(one.cached_tokens for one in done)
    assert stats.generated_tokens == sum(len(one.token_ids) for one in completions.values())


def served(engine: Engine, arrivals: list[Arrival]) -> Iterator[Completion]:
    """All completions; a bound on the steps is what tells starvation."""
    answers, ended = sum(arrival.n for arrival in arrivals), 0
    for step in range(10_000):
        some: list[Completion] = []
        for number, arrival in enumerate(arrivals):
            if arrival.step == step:
                prompt = tuple(PROMPTS[arrival.prompt])
                engine.add(Request(id=str(number), prompt_token_ids=prompt, params=arrival.params))
            if arrival.abort_at == step:
                some += engine.abort(str(number))
        some += engine.step()
        yield from some
        ended += len(some)
        if ended == answers:
            return
    raise AssertionError(f"{answers - ended} answers are still unfinished")


def check(arrival: Arrival, completion: Completion) -> None:
    tokens = arrival.answer
    aborted = completion.finish_reason == "abort"
    assert list(completion.token_ids) == tokens[: len(completion.token_ids)]
    assert aborted or len(completion.token_ids) == len(tokens)
    if arrival.scored and not aborted:
        assert completion.prompt_logprobs is not None
        scored = [record.token_id for record in completion.prompt_logprobs]
        assert scored == PROMPTS[arrival.prompt][1:]
