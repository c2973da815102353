"""The three kinds of `model benchmark`: which engine runs what, and what is made of it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from model.benchmark import pictures, report
from model.benchmark.measure import run
from model.benchmark.rounds import Round, averages, dry_run, measure, step_tokens
from model.benchmark.search import Try, attempt, judge, largest
from model.benchmark.throughput import Throughput, per_request
from model.benchmark.workload import Lengths, dialogue_requests, fitting, random_requests, read_trace
from model.chat import Chat
from model.commands.benchmark_results import Results, bar, rounds_table, throughput_table
from model.config import EngineConfig, ModelConfig
from model.dialogues import read_dialogues
from model.engine import Engine
from model.errors import RequestError
from model.request import Request

_LEAST_STEP_TOKENS = EngineConfig(path=Path()).max_step_tokens
_NO_TOKENIZER = "random weights, and no tokenizer: the time to make text of tokens is not in the figures"


def _preferred(model: ModelConfig, cases: Sequence[tuple[int, int]], batch_size: int) -> dict[str, int]:
    """The engine's settings that a batch of such requests wants."""
    longest = max(first + second for first, second in cases)
    return {
        "max_num_seqs": batch_size,
        "max_step_tokens": step_tokens(batch_size, max(first for first, _ in cases), _LEAST_STEP_TOKENS),
        "max_model_len": min(longest, model.rope.max_position),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class PerformancePlan:
    """What `performance` measures."""

    cases: Sequence[tuple[int, int]]
    batch_sizes: Sequence[int]

    def preferred(self, model: ModelConfig) -> dict[str, int]:
        """The engine's settings that serve all rounds."""
        return _preferred(model, self.cases, max(self.batch_sizes))


def performance(
    plan: PerformancePlan, config: EngineConfig, model: ModelConfig, seed: int, results: Results
) -> bool:
    """Run all rounds on one engine; whether one failed."""
    rounds: list[Round] = []
    with _started(config, results) as engine:
        longest = min(max(first for first, _ in plan.cases), engine.max_model_len - 1)
        dry_run(engine, max(plan.batch_sizes), longest)
        for batch_size in plan.batch_sizes:
            for case in plan.cases:
                rounds.append(_round(engine, results, batch_size, Lengths(*case), seed + len(rounds)))
                results.keep_rows(report.performance_rows(rounds))
    means = {size: averages([one for one in rounds if one.batch_size == size]) for size in plan.batch_sizes}
    results.keep(
        report.setting(config, model, results.model)
        | {
            "rounds": [asdict(one) for one in rounds],
            "averages": [
                {"batch_size": size, "decode_tokens_per_second": decode, "tokens_per_second": whole}
                for size, (decode, whole) in means.items()
            ],
        },
        report.performance_rows(rounds),
        pictures.of_rounds(results.title, rounds),
        [rounds_table(results.title, rounds)],
    )
    return any(one.error for one in rounds)


def _round(engine: Engine, results: Results, batch_size: int, lengths: Lengths, seed: int) -> Round:
    """One round with its progress; one that the engine refuses has an error instead of figures."""
    with bar(f"{lengths} ×{batch_size}", batch_size * lengths.output) as show:
        try:
            one = measure(
                engine,
                model=results.model,
                batch_size=batch_size,
                lengths=lengths,
                seed=seed,
                on_step=lambda _, tokens: show(tokens),
            )
        except RequestError as error:
            one = Round(
                model=results.model,
                batch_size=batch_size,
                input=lengths.input,
                output=lengths.output,
                error=str(error),
            )
    results.note(_line(one))
    return one


def _line(one: Round) -> str:
    head = f"{Lengths(one.input, one.output)} ×{one.batch_size}"
    if one.error is not None:
        return f"{head}: {one.error}"
    return f"{head}: {one.decode_ms:.2f} ms a token, {one.tokens_per_second:.1f} tokens/s"


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPlan:
    """What `performance-maxbs` looks for."""

    cases: Sequence[tuple[int, int]]
    #: Batch sizes from … to, for each case.
    ranges: Sequence[tuple[int, int]]
    limit_ms: float


def performance_maxbs(
    plan: SearchPlan,
    configured: Callable[..., EngineConfig],
    model: ModelConfig,
    seed: int,
    results: Results,
) -> bool:
    """Search each case; whether a case had no try that ran at all."""
    searches: dict[Lengths, list[Try]] = {}
    best: dict[Lengths, int] = {}
    for case, (low, high) in zip(plan.cases, plan.ranges, strict=True):
        lengths, tries = Lengths(*case), searches.setdefault(Lengths(*case), [])

        def passes(batch_size: int, lengths: Lengths = lengths, tries: list[Try] = tries) -> bool:
            config = configured(**_preferred(model, [lengths], batch_size))
            with bar(f"{lengths} ×{batch_size}", None):
                one = attempt(config, results.model, batch_size, lengths, seed)
            tries.append(judge(one, plan.limit_ms))
            results.keep_rows(_search_rows(searches))
            results.note(f"{_line(tries[-1].round)}{'' if tries[-1].passed else ' – too much'}")
            return tries[-1].passed

        best[lengths] = largest(low, high, passes)
        results.note(f"{lengths}: the largest batch is {best[lengths]}")
    _keep_searches(plan, searches, best, results, report.setting(configured(), model, results.model))
    return any(all(one.round.error for one in tries) for tries in searches.values())


def _search_rows(searches: dict[Lengths, list[Try]]) -> list[list[object]]:
    return report.search_rows([one.round for tries in searches.values() for one in tries])


def _keep_searches(
    plan: SearchPlan,
    searches: dict[Lengths, list[Try]],
    best: dict[Lengths, int],
    results: Results,
    setting: dict[str, object],
) -> None:
    final = [
        one.round
        for lengths, tries in searches.items()
        for one in tries
        if one.passed and one.round.batch_size == best[lengths]
    ]
    tries = [one for found in searches.values() for one in found]
    report.write_csv(results.folder / "final.csv", report.search_rows(final))
    results.keep(
        setting
        | {
            "limit_ms": plan.limit_ms,
            "searches": [
                {
                    "input": lengths.input,
                    "output": lengths.output,
                    "largest_batch": best[lengths],
                    "tries": [asdict(one.round) | {"passed": one.passed} for one in found],
                }
                for lengths, found in searches.items()
            ],
        },
        _search_rows(searches),
        pictures.of_searches(results.title, searches, plan.limit_ms),
        [
            rounds_table(
                f"{results.title}: all tries, limit {plan.limit_ms:g} ms a token",
                [one.round for one in tries],
                ["passed" if one.passed else one.round.error or "too slow" for one in tries],
            ),
            *([rounds_table(f"{results.title}: the largest batches", final)] if final else []),
        ],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What `throughput` queues: a trace's lengths, a dataset's dialogues, or random prompts of one length."""

    #: None is all of a file.
    num_prompts: int | None
    input_len: int
    output_len: int
    trace: Path | None
    dataset: Path | None
    ignore_eos: bool
    seed: int

    def requests(self, path: Path, vocab_size: int) -> list[Request]:
        """The requests for the model in folder `path`. Raises RequestError, TokenizerError."""
        if self.dataset:
            chat = Chat.load(path)
            prompts = [chat.encode(messages) for messages in read_dialogues(self.dataset, self.num_prompts)]
            return dialogue_requests(prompts, self.output_len, ignore_eos=self.ignore_eos)
        if self.trace:
            return random_requests(read_trace(self.trace, self.num_prompts), vocab_size, self.seed)
        assert self.num_prompts  # noqa: S101 - only a file says by itself how many there are
        return random_requests(
            [Lengths(self.input_len, self.output_len)] * self.num_prompts, vocab_size, self.seed
        )


def throughput(work: Work, config: EngineConfig, model: ModelConfig, results: Results) -> None:
    """Run all requests at once."""
    asked = work.requests(config.path, model.vocab_size)
    with _started(config, results) as engine:
        requests = fitting(asked, engine.max_model_len)
        dry_run(engine, 1, min(work.input_len, engine.max_model_len - 1))
        with bar("requests", len(requests)) as show:
            seen = run(engine, requests, lambda done, _: show(done))
    figures = Throughput.of(seen, len(asked) - len(requests))
    rows = per_request(seen)
    report.write_csv(
        results.folder / "requests.csv", [list(row.values()) for row in rows], header=list(rows[0])
    )
    work_record = {
        name: str(value) if isinstance(value, Path) else value for name, value in asdict(work).items()
    }
    results.keep(
        report.setting(config, model, results.model) | {"work": work_record, "figures": asdict(figures)},
        [report.throughput_row(results.model, figures)],
        pictures.of_run(results.title, seen),
        [throughput_table(results.title, figures)],
    )


@contextmanager
def _started(config: EngineConfig, results: Results) -> Iterator[Engine]:
    if config.random_weights:
        results.note(_NO_TOKENIZER)
    with bar("loading", None):
        engine = Engine(config)
    try:
        yield engine
    finally:
        engine.close()
