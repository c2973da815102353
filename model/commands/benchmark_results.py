"""What a benchmark shows and leaves: progress on stderr, tables on stdout, files in a folder."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from model.benchmark import report
from model.benchmark.rounds import Round
from model.benchmark.throughput import Throughput
from model.errors import ConfigError

#: Columns of a table where no terminal says how many there are.
_WIDTH = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """One run's folder and its words."""

    folder: Path
    kind: str
    model: str
    as_json: bool

    @property
    def title(self) -> str:
        """What the picture is called."""
        return f"{self.model}, {self.kind}"

    def note(self, text: str) -> None:
        """A line on stderr."""
        typer.echo(text, err=True)

    def keep_rows(self, rows: Sequence[Sequence[object]]) -> None:
        """Write results.csv as far as it is: a run that is interrupted leaves the rounds that it had."""
        report.write_csv(self.folder / "results.csv", rows)

    def keep(
        self,
        document: Mapping[str, Any],
        rows: Sequence[Sequence[object]],
        picture: str,
        tables: Sequence[Table],
    ) -> None:
        """Write results.csv, results.json and plot.svg, and show the tables or the JSON."""
        document = {"kind": self.kind, **document}
        self.keep_rows(rows)
        report.write_json(self.folder / "results.json", document)
        (self.folder / "plot.svg").write_text(picture, encoding="utf-8")
        if self.as_json:
            typer.echo(json.dumps(document, ensure_ascii=False))
        else:
            console = Console()
            if not console.is_terminal:
                console = Console(width=_WIDTH)
            for table in tables:
                console.print(table)
        self.note(f"results.csv, results.json and plot.svg are in {self.folder}")


@contextmanager
def opened(parent: Path, kind: str, model: str, *, as_json: bool) -> Iterator[Results]:
    """A new folder in `parent`, gone again if nothing came of the run. Raises ConfigError."""
    try:
        folder = _new_folder(parent, f"{time.strftime('%Y%m%d-%H%M%S')}-{kind}-{model}")
    except OSError as error:
        raise ConfigError(
            f"can not make a folder in {parent}: {error.strerror}; choose another --output-dir"
        ) from None
    try:
        yield Results(folder=folder, kind=kind, model=model, as_json=as_json)
    finally:
        if not any(folder.iterdir()):
            folder.rmdir()


def _new_folder(parent: Path, name: str) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        break
    return folder


@contextmanager
def bar(text: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, where that is a terminal; call with how much is done."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(text, total=total)
        yield lambda done: progress.update(task, completed=done)


def rounds_table(title: str, rounds: Sequence[Round], verdicts: Sequence[str] = ()) -> Table:
    """Rounds as modeltest's columns in short, with a last column where there are verdicts."""
    table = Table(title=title, title_justify="left")
    for heading in (
        "batch", "in", "out", "total s", "prefill ms", "prefill ms a step", "ms a token", "tokens/s decoding",
        "tokens/s",
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    if verdicts:
        table.add_column("")
    for number, one in enumerate(rounds):
        shown = (
            [f"{figure:,.2f}" for figure in one.figures] if one.error is None else ["–"] * len(one.figures)
        )
        last = verdicts[number : number + 1]
        table.add_row(str(one.batch_size), str(one.input), str(one.output), *shown, *last)
    return table


def throughput_table(title: str, figures: Throughput) -> Table:
    """A throughput run, a figure in a row."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column("")
    table.add_column("", justify="right")
    for name, value in (
        ("requests", f"{figures.requests:,}"),
        ("left out, too long", f"{figures.dropped:,}"),
        ("seconds", f"{figures.seconds:,.2f}"),
        ("input tokens", f"{figures.input_tokens:,}, {figures.input_tokens_per_second:,.1f}/s"),
        ("output tokens", f"{figures.output_tokens:,}, {figures.output_tokens_per_second:,.1f}/s"),
        ("all tokens", f"{figures.total_tokens_per_second:,.1f}/s"),
        (
            "first token, s (p50, p99)",
            _pair(figures.first_token_seconds.p50, figures.first_token_seconds.p99),
        ),
        ("whole answer, s (p50, p99)", _pair(figures.latency_seconds.p50, figures.latency_seconds.p99)),
        ("ms a token (p50, p99)", _pair(figures.decode_ms.p50, figures.decode_ms.p99)),
        ("most sequences at once", f"{figures.peak_running:,}"),
        ("most of the KV cache in use", f"{100 * figures.cache_use:.1f} %"),
        ("prompt tokens found in the cache", f"{figures.cached_tokens:,}"),
        ("preemptions", f"{figures.preemptions:,}"),
    ):
        table.add_row(name, value)
    return table


def _pair(first: float, second: float) -> str:
    return f"{first:,.2f}, {second:,.2f}"
