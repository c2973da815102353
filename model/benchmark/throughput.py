"""Offline throughput: all requests queued at once, and what each of them saw."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from model.benchmark.measure import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A quantity over the requests."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Percentiles by nearest rank: the smallest value that so many of the values do not exceed."""
        ordered = sorted(values) or [0.0]

        def rank(share: float) -> float:
            return ordered[math.ceil(share * len(ordered)) - 1]

        mean = sum(ordered) / len(ordered)
        return cls(mean=mean, p50=rank(0.5), p90=rank(0.9), p99=rank(0.99), max=ordered[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """The figures of one run."""

    requests: int
    #: Longer than the context, and left out.
    dropped: int
    seconds: float
    input_tokens: int
    output_tokens: int
    input_tokens_per_second: float
    output_tokens_per_second: float
    total_tokens_per_second: float
    requests_per_second: float
    #: From the start, when all were queued, to a request's first token and to its end.
    first_token_seconds: Spread
    latency_seconds: Spread
    #: Per token of a request after its first.
    decode_ms: Spread
    steps: int
    peak_running: int
    preemptions: int
    cached_tokens: int
    #: Most of the cache in use, from 0 to 1.
    cache_use: float

    @classmethod
    def of(cls, run: Run, dropped: int) -> "Throughput":
        """Sum a run up."""
        sizes = [len(completion.token_ids) for completion in run.completions]
        decode = [
            1000 * (end - first) / (size - 1)
            for first, end, size in zip(run.first_token, run.ended, sizes, strict=True)
            if size > 1
        ]
        return cls(
            requests=len(run.completions),
            dropped=dropped,
            seconds=run.seconds,
            input_tokens=run.input_tokens,
            output_tokens=run.output_tokens,
            input_tokens_per_second=run.input_tokens / run.seconds,
            output_tokens_per_second=run.output_tokens / run.seconds,
            total_tokens_per_second=(run.input_tokens + run.output_tokens) / run.seconds,
            requests_per_second=len(run.completions) / run.seconds,
            first_token_seconds=Spread.of(run.first_token),
            latency_seconds=Spread.of(run.ended),
            decode_ms=Spread.of(decode),
            steps=run.steps,
            peak_running=run.peak_running,
            preemptions=run.preemptions,
            cached_tokens=run.cached_tokens,
            cache_use=run.peak_blocks / run.total_blocks,
        )


def per_request(run: Run) -> list[dict[str, Any]]:
    """A row for each request."""
    return [
        {
            "input_tokens": completion.prompt_tokens,
            "cached_tokens": completion.cached_tokens,
            "output_tokens": len(completion.token_ids),
            "finish_reason": completion.finish_reason,
            "first_token_seconds": round(first, 6),
            "latency_seconds": round(end, 6),
        }
        for completion, first, end in zip(run.completions, run.first_token, run.ended, strict=True)
    ]
