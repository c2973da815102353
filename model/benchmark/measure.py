"""One run of the engine over some requests, all queued at once: when each began and ended to answer."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

from model.engine import Engine
from model.request import Completion, Request

#: Called after each step with how many requests have ended and how many tokens were generated.
OnStep = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What was seen from outside the engine. Times are seconds since the requests were handed over."""

    #: In the order of the requests.
    completions: tuple[Completion, ...]
    first_token: tuple[float, ...]
    ended: tuple[float, ...]
    #: From the first request handed over to the last text.
    seconds: float
    steps: int
    #: Steps until every request had its first token.
    prefill_steps: int
    preemptions: int
    #: Most sequences at once.
    peak_running: int
    #: Most of the cache's blocks in use, and how many there are.
    peak_blocks: int
    total_blocks: int

    @property
    def input_tokens(self) -> int:
        """Of all prompts."""
        return sum(completion.prompt_tokens for completion in self.completions)

    @property
    def output_tokens(self) -> int:
        """Of all answers."""
        return sum(len(completion.token_ids) for completion in self.completions)

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that were found in the cache."""
        return sum(completion.cached_tokens for completion in self.completions)

    @property
    def prefill_seconds(self) -> float:
        """Until every request had its first token."""
        return max(self.first_token)


def run(engine: Engine, requests: Sequence[Request], on_step: OnStep | None = None) -> Run:
    """Hand the requests over and step until all have ended. Raises RequestError for one that is refused."""
    before = engine.stats()
    completions: dict[str, Completion] = {}
    first: dict[str, float] = {}
    ended: dict[str, float] = {}
    prefill_steps = steps = peak_running = peak_blocks = 0
    start = time.perf_counter()
    for request in requests:
        engine.add(request)
    # In the order of arrival, which is that of admission: only the first few can have got a token.
    pending = {request.id: None for request in requests}
    while engine.has_unfinished:
        finished = engine.step()
        now = time.perf_counter() - start
        steps += 1
        for completion in finished:
            completions[completion.request_id] = completion
            ended[completion.request_id] = now
        waiting = list(islice(pending, engine.config.max_num_seqs))
        for request_id in waiting:
            if request_id in ended or engine.progress(request_id):
                first[request_id] = now
                del pending[request_id]
                prefill_steps = steps
        stats = engine.stats()
        peak_running = max(peak_running, stats.running + len(finished))
        peak_blocks = max(peak_blocks, stats.used_blocks)
        if on_step:
            on_step(len(ended), stats.generated_tokens - before.generated_tokens)
    after = engine.stats()
    return Run(
        completions=tuple(completions[request.id] for request in requests),
        first_token=tuple(first[request.id] for request in requests),
        ended=tuple(ended[request.id] for request in requests),
        seconds=time.perf_counter() - start,
        steps=steps,
        prefill_steps=prefill_steps,
        preemptions=after.preemptions - before.preemptions,
        peak_running=peak_running,
        peak_blocks=peak_blocks,
        total_blocks=after.total_blocks,
    )
