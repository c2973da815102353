"""Which chart shows which benchmark."""

from collections.abc import Mapping, Sequence

from model.benchmark.chart import Bars, Lines, Series, svg
from model.benchmark.measure import Run
from model.benchmark.rounds import Round
from model.benchmark.search import Try
from model.benchmark.workload import Lengths


def of_rounds(title: str, rounds: Sequence[Round]) -> str:
    """Time per token and throughput of each round."""
    good = [one for one in rounds if one.error is None]
    labels = [f"{Lengths(one.input, one.output)} ×{one.batch_size}" for one in good]
    return svg(
        title,
        [
            Bars("Non-first token time", "ms", labels, [one.decode_ms for one in good]),
            Bars("Throughput", "tokens/s", labels, [one.tokens_per_second for one in good]),
        ],
    )


def of_searches(title: str, searches: Mapping[Lengths, Sequence[Try]], limit_ms: float) -> str:
    """Time per token over the batch size, one panel for each pair of lengths; failed tries marked."""
    panels = []
    for lengths, tries in searches.items():
        points = [(float(one.round.batch_size), one.round.decode_ms) for one in tries if not one.round.error]
        failed = [float(one.round.batch_size) for one in tries if one.round.error]
        series = [Series("Non-first token time", points)]
        panels.append(
            Lines(
                str(lengths), "batch size", "ms", series, limit=(limit_ms, f"{limit_ms:g} ms"), failed=failed
            )
        )
    return svg(title, panels)


def of_run(title: str, run: Run) -> str:
    """How many requests had their first token, and their end, after how long."""
    series = []
    for name, times in (("first token", sorted(run.first_token)), ("whole answer", sorted(run.ended))):
        points = [(seconds, 100 * rank / len(times)) for rank, seconds in enumerate(times, 1)]
        series.append(Series(name, [(times[0], 0.0), *points]))
    return svg(title, [Lines("Requests served", "seconds", "% of requests", series, marks=False)])
