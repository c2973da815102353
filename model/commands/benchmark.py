"""`model benchmark`: how fast the engine is, as a table, CSV, JSON and a picture.

The kinds are commands of their own, but the checkpoint may stand before the kind, as it reads best:
`model benchmark CKPT performance …`.
"""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from model.commands import console
from model.commands.options import EngineOptions, JsonOption, ShapeOption, with_records
from model.config import EngineConfig, ModelConfig

_DEFAULT = EngineConfig(path=Path())
_LIMIT_MS = 50.0
_REQUESTS, _INPUT, _OUTPUT = 64, 256, 64


class _KindFirst(TyperGroup):
    """Finds the kind wherever it stands among the arguments."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Move the kind to the front."""
        place = next((place for place, word in enumerate(args) if word in self.commands), 0)
        return super().parse_args(ctx, [*args[place : place + 1], *args[:place], *args[place + 1 :]])


app = typer.Typer(
    name="benchmark", cls=_KindFirst, no_args_is_help=True, subcommand_metavar="[CKPT] KIND [ARGS]..."
)


@app.callback()
def benchmark() -> None:
    """Measure how fast the engine is.

    The kinds performance and performance-maxbs follow the rules of MindIE's modeltest, so that figures can be
    compared. Each run leaves results.csv, results.json and plot.svg in a new folder under --output-dir.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectOptions:
    """What every kind needs to know: the model, and where the results go."""

    checkpoint: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="CKPT", help="Folder of the model; or give --dry-run-weights.", show_default=False
        ),
    ] = None
    shape: ShapeOption = None
    output_dir: Annotated[
        Path, typer.Option(metavar="DIR", help="Where each run makes a folder for its results.")
    ] = Path("benchmark-results")
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Which random prompts.")] = 0
    as_json: JsonOption = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is measured."""

    path: Path
    name: str
    model: ModelConfig
    random_weights: bool


def _pairs(text: str) -> list[tuple[int, int]]:
    from model.benchmark.workload import parse_pairs  # noqa: PLC0415 - brings numpy

    try:
        return parse_pairs(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


CasesArgument = Annotated[
    str,
    typer.Argument(
        metavar="CASES",
        help="Tokens of the prompts and of the answers: [[IN,OUT],[IN,OUT],…].",
        show_default=False,
    ),
]


@app.command()
@with_records
def performance(
    subject: SubjectOptions,
    cases: CasesArgument,
    engine: EngineOptions,
    batch_size: Annotated[
        list[int] | None,
        typer.Option(metavar="N", min=1, help="Sequences at once; repeatable.", show_default="1"),
    ] = None,
) -> None:
    """Time a batch of random prompts for each pair of lengths.

    As modeltest's performance: end tokens are ignored, and a dry run of two tokens comes first.

    Example: model benchmark CKPT performance [[2048,2048],[256,256]] --batch-size 1
    """
    lengths = _pairs(cases)
    with console.errors(subject.as_json), _opened(subject) as opened:
        from model.commands import benchmark_runs  # noqa: PLC0415 - brings torch

        plan = benchmark_runs.PerformancePlan(cases=lengths, batch_sizes=batch_size or [1])
        config = _config(opened, engine, **plan.preferred(opened.model))
        with _results(subject, "performance", opened) as results:
            failed = benchmark_runs.performance(plan, config, opened.model, subject.seed, results)
    sys.exit(1 if failed else 0)


@app.command()
@with_records
def performance_maxbs(
    subject: SubjectOptions,
    cases: CasesArgument,
    ranges: Annotated[
        str,
        typer.Argument(
            metavar="RANGES", help="Batch sizes to search, for each case: [[LOW,HIGH],…].", show_default=False
        ),
    ],
    engine: EngineOptions,
    limit_ms: Annotated[
        float, typer.Option(metavar="MS", min=0, help="Longest time per token after the first.")
    ] = _LIMIT_MS,
) -> None:
    """Find the largest batch that neither fails nor exceeds a time per token.

    As modeltest's performance_maxbs: bisection, each try in a process of its own. A batch that the cache does
    not hold at once has failed.

    Example: model benchmark CKPT performance-maxbs [[256,256],[512,512]] [[1,2048],[1,2048]] --limit-ms 50
    """
    lengths, batches = _pairs(cases), _pairs(ranges)
    if len(lengths) != len(batches):
        raise typer.BadParameter(f"{len(lengths)} pairs of lengths and {len(batches)} ranges of batch sizes")
    with console.errors(subject.as_json), _opened(subject) as opened:
        from model.commands import benchmark_runs  # noqa: PLC0415 - brings torch

        plan = benchmark_runs.SearchPlan(cases=lengths, ranges=batches, limit_ms=limit_ms)

        def configured(**preferred: Any) -> EngineConfig:
            return _config(opened, engine, **preferred)

        with _results(subject, "performance-maxbs", opened) as results:
            failed = benchmark_runs.performance_maxbs(plan, configured, opened.model, subject.seed, results)
    sys.exit(1 if failed else 0)


@app.command()
@with_records
def throughput(  # noqa: PLR0917 - typer passes them by name
    subject: SubjectOptions,
    engine: EngineOptions,
    num_prompts: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Requests.", show_default=f"{_REQUESTS}, or all of a file"),
    ] = None,
    input_len: Annotated[
        int | None, typer.Option(metavar="TOKENS", min=1, help="Of random prompts.", show_default=f"{_INPUT}")
    ] = None,
    output_len: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS", min=1, help="Of each answer; of a dataset's at most.", show_default=f"{_OUTPUT}"
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="Lengths of an Azure LLM inference trace, all requests at once."),
    ] = None,
    dataset: Annotated[
        Path | None,
        typer.Option(metavar="JSONL", help="Real dialogues, one in a line; answers end by themselves."),
    ] = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="With --dataset: answers of full length.")
    ] = False,
) -> None:
    """Queue many requests at once and see how fast they are done.

    Prompts are random tokens of set lengths, of a trace's lengths, or real dialogues. Requests that are
    longer than the context are left out, and counted.

    Example: model benchmark CKPT throughput --trace AzureLLMInferenceTrace_conv.csv --num-prompts 500
    """
    if trace and dataset:
        raise typer.BadParameter("give --trace or --dataset, not both")
    if trace and (input_len or output_len):
        raise typer.BadParameter("a --trace has its own lengths")
    if dataset and (input_len or subject.shape):
        raise typer.BadParameter("a --dataset has its own prompts, which need a model's tokenizer")
    if ignore_eos and not dataset:
        raise typer.BadParameter("--ignore-eos is for a --dataset; random prompts always ignore it")
    with console.errors(subject.as_json), _opened(subject) as opened:
        from model.commands import benchmark_runs  # noqa: PLC0415 - brings torch

        work = benchmark_runs.Work(
            num_prompts=num_prompts or (None if trace or dataset else _REQUESTS),
            input_len=input_len or _INPUT,
            output_len=output_len or _OUTPUT,
            trace=trace,
            dataset=dataset,
            ignore_eos=ignore_eos,
            seed=subject.seed,
        )
        config = _config(opened, engine)
        with _results(subject, "throughput", opened) as results:
            benchmark_runs.throughput(work, config, opened.model, results)


@contextmanager
def _opened(options: SubjectOptions) -> Iterator[Subject]:
    """The checkpoint, or a folder that stands for one. Raises ModelError where there is none."""
    paths = options.checkpoint or []
    if len(paths) + (options.shape is not None) != 1:
        raise typer.BadParameter("give one CKPT, or --dry-run-weights SHAPE in its place")
    if options.shape is None:
        path = paths[0]
        yield Subject(path=path, name=path.resolve().name, model=ModelConfig.load(path), random_weights=False)
        return
    from model import shapes  # noqa: PLC0415 - together with what needs it

    with tempfile.TemporaryDirectory(prefix="model-shape-") as folder:
        path = shapes.write(options.shape, Path(folder))
        yield Subject(path=path, name=options.shape, model=ModelConfig.load(path), random_weights=True)


def _config(subject: Subject, engine: EngineOptions, **preferred: Any) -> EngineConfig:
    """The engine's settings. Raises ConfigError, also for made-up weights that memory does not hold."""
    config = engine.config(subject.path, random_weights=subject.random_weights, **preferred)
    if subject.random_weights and config.device == "cpu":
        from model import memory, shapes  # noqa: PLC0415
        from model.devices import load_device  # noqa: PLC0415 - brings torch

        dtype = load_device(config.device).dtype(config.dtype, subject.model.dtype)
        shapes.require_memory(subject.name, dtype.itemsize, memory.available_memory())
    return config


@contextmanager
def _results(options: SubjectOptions, kind: str, subject: Subject) -> Iterator[Any]:
    from model.commands import benchmark_results  # noqa: PLC0415 - brings torch

    with benchmark_results.opened(options.output_dir, kind, subject.name, as_json=options.as_json) as results:
        yield results
