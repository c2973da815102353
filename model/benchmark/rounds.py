"""modeltest's `performance`: a batch of prompts of one length, each generating one length. Its rules:

random token ids, end tokens ignored, a dry run of two tokens first, all figures over the whole batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from model.benchmark.measure import OnStep, Run, run
from model.benchmark.workload import Lengths, random_requests
from model.engine import Engine

_DRY_RUN_TOKENS = 2
#: No seed of a round gives these prompts, which the prefix cache will know.
_DRY_RUN_SEED = (0, 1)
#: Prompt tokens of one step, so that a batch of prompts is computed at once where memory allows it.
_PREFILL_TOKENS = 16384


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One row of modeltest's table, with what the engine says besides."""

    model: str
    batch_size: int
    input: int
    output: int
    #: Why there are no figures, or why those that there are do not count.
    error: str | None = None
    total_seconds: float = 0.0
    #: Until every sequence has its first token; and of that, per step.
    prefill_ms: float = 0.0
    prefill_average_ms: float = 0.0
    #: Per token of a sequence after its first.
    decode_ms: float = 0.0
    #: Over the batch: while decoding, and over everything.
    decode_tokens_per_second: float = 0.0
    tokens_per_second: float = 0.0
    #: Most sequences that ran at once.
    peak_running: int = 0
    preemptions: int = 0
    cached_tokens: int = 0
    #: Most of the cache in use, from 0 to 1.
    cache_use: float = 0.0

    @property
    def figures(self) -> tuple[float, ...]:
        """What a table of rounds shows, in modeltest's order."""
        return (
            self.total_seconds,
            self.prefill_ms,
            self.prefill_average_ms,
            self.decode_ms,
            self.decode_tokens_per_second,
            self.tokens_per_second,
        )


def step_tokens(batch_size: int, longest_input: int, least: int) -> int:
    """Tokens that a step should take for a batch of such prompts."""
    return max(least, batch_size, min(batch_size * longest_input, _PREFILL_TOKENS))


def dry_run(engine: Engine, batch_size: int, longest_input: int) -> None:
    """Have the engine take its memory and warm up."""
    output = min(_DRY_RUN_TOKENS, max(1, engine.max_model_len - longest_input))
    lengths = [Lengths(longest_input, output)] * batch_size
    run(engine, random_requests(lengths, engine.model.vocab_size, _DRY_RUN_SEED, name="dry-run"))


def measure(
    engine: Engine, *, model: str, batch_size: int, lengths: Lengths, seed: int, on_step: OnStep | None = None
) -> Round:
    """One round. Raises RequestError where the lengths are over the context."""
    requests = random_requests([lengths] * batch_size, engine.model.vocab_size, seed)
    return of_run(run(engine, requests, on_step), model, lengths)


def of_run(seen: Run, model: str, lengths: Lengths) -> Round:
    """The figures of a run whose requests are all of these lengths."""
    batch_size = len(seen.completions)
    decode_seconds = (max(seen.ended) - seen.prefill_seconds) / max(1, lengths.output - 1)
    return Round(
        model=model,
        batch_size=batch_size,
        input=lengths.input,
        output=lengths.output,
        error=_why_not_as_one(seen, batch_size),
        total_seconds=seen.seconds,
        prefill_ms=seen.prefill_seconds * 1000,
        prefill_average_ms=seen.prefill_seconds * 1000 / seen.prefill_steps,
        decode_ms=decode_seconds * 1000,
        decode_tokens_per_second=batch_size / decode_seconds if decode_seconds else 0.0,
        tokens_per_second=seen.output_tokens / seen.seconds,
        peak_running=seen.peak_running,
        preemptions=seen.preemptions,
        cached_tokens=seen.cached_tokens,
        cache_use=seen.peak_blocks / seen.total_blocks,
    )


def _why_not_as_one(seen: Run, batch_size: int) -> str | None:
    """A batch of which a part had to wait has failed: its time per token is that of a smaller one."""
    if seen.peak_running < batch_size:
        return (
            f"only {seen.peak_running} of {batch_size} sequences ran at once: "
            "raise --kv-cache (or --max-num-seqs)"
        )
    if seen.preemptions:
        return f"{seen.preemptions} preemptions: raise --kv-cache"
    return None


def averages(rounds: Sequence[Round]) -> tuple[float, float]:
    """Means of decode_tokens_per_second and tokens_per_second over the rounds that have figures."""
    good = [one for one in rounds if one.error is None]
    if not good:
        return 0.0, 0.0
    decode = sum(one.decode_tokens_per_second for one in good) / len(good)
    return decode, sum(one.tokens_per_second for one in good) / len(good)
