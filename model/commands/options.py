"""The options that commands share. A record declares them once, and `with_records` puts them in a command.

@app.command()
@with_records
def evaluate(checkpoint: CheckpointArgument, engine: EngineOptions, …) -> None:
    Engine(engine.config(checkpoint))
"""

import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from model.config import EngineConfig

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_DEFAULT = EngineConfig(path=Path())
_PANEL = "Engine"


def parse_size(text: str) -> int:
    """Bytes of `500MB`, `2GB` or `2GiB`; a bare number is bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    unit = _UNITS.get(match[2].upper()) if match else None
    if not match or unit is None or (size := int(float(match[1]) * unit)) < 1:
        raise typer.BadParameter(f"{text!r} is not a size: write 500MB, 2GB or 2GiB")
    return size


class Attention(StrEnum):
    """config.AttentionMode as choices."""

    PAGED = "paged"
    FLASH = "flash"


class ComputeType(StrEnum):
    """config.DTypeName as choices."""

    AUTO = "auto"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"
    FLOAT16 = "float16"


class QuantizationChoice(StrEnum):
    """config.Quantization as choices."""

    NONE = "none"
    W8A16 = "w8a16"
    W8A8 = "w8a8"


class DeviceChoice(StrEnum):
    """config.DeviceName as choices."""

    CPU = "cpu"
    CUDA = "cuda"
    NPU = "npu"


CheckpointArgument = Annotated[
    Path, typer.Argument(metavar="CKPT", help="Folder of the model, as `model convert` makes.")
]
ShapeOption = Annotated[
    str | None,
    typer.Option(
        "--dry-run-weights",
        metavar="SHAPE",
        help="Instead of CKPT: random weights of a published shape, such as internlm2-1_8b.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How to run the model: fields of EngineConfig under the same names and with the same defaults."""

    attention: Annotated[
        Attention,
        typer.Option(
            help="Keep keys and values in blocks, or (flash) in one stretch per sequence.",
            rich_help_panel=_PANEL,
        ),
    ] = Attention.PAGED
    dtype: Annotated[
        ComputeType,
        typer.Option(help="What to compute in; auto is the checkpoint's own.", rich_help_panel=_PANEL),
    ] = ComputeType.AUTO
    quantization: Annotated[
        QuantizationChoice,
        typer.Option(help="int8 weights on npu; w8a8 makes activations int8 too.", rich_help_panel=_PANEL),
    ] = QuantizationChoice.NONE
    device: Annotated[DeviceChoice, typer.Option(help="Where to compute.", rich_help_panel=_PANEL)] = (
        DeviceChoice.CPU
    )
    tensor_parallel_size: Annotated[
        int,
        typer.Option(
            "--tp",
            "--tensor-parallel-size",
            metavar="N",
            min=1,
            help="Processes that share the model.",
            rich_help_panel=_PANEL,
        ),
    ] = _DEFAULT.tensor_parallel_size
    max_model_len: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS",
            min=1,
            help="Longest prompt plus answer.",
            show_default="the model's",
            rich_help_panel=_PANEL,
        ),
    ] = _DEFAULT.max_model_len
    rope_scaling: Annotated[
        str | None,
        typer.Option(
            metavar="KIND:FACTOR",
            help="Instead of the checkpoint's: dynamic:2.0, linear:4 or default.",
            rich_help_panel=_PANEL,
        ),
    ] = _DEFAULT.rope_scaling
    block_size: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS",
            min=1,
            help="Tokens per block of the cache.",
            show_default="32, on npu 128",
            rich_help_panel=_PANEL,
        ),
    ] = None
    kv_cache_bytes: Annotated[
        int | None,
        typer.Option(
            "--kv-cache",
            parser=parse_size,
            metavar="SIZE",
            help="Cache of each process: 500MB, 2GiB.",
            show_default="what is needed and free",
            rich_help_panel=_PANEL,
        ),
    ] = _DEFAULT.kv_cache_bytes
    max_num_seqs: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Sequences that run at once.",
            show_default=f"{_DEFAULT.max_num_seqs}, or what the command needs",
            rich_help_panel=_PANEL,
        ),
    ] = None
    max_step_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS",
            min=1,
            help="Tokens of one step.",
            show_default=f"{_DEFAULT.max_step_tokens}, or what the command needs",
            rich_help_panel=_PANEL,
        ),
    ] = None
    prefix_caching: Annotated[
        bool | None,
        typer.Option(
            "--prefix-caching/--no-prefix-caching",
            help="Compute a common beginning of prompts once.",
            show_default="yes, where attention is paged",
            rich_help_panel=_PANEL,
        ),
    ] = _DEFAULT.prefix_caching
    num_threads: Annotated[
        int | None,
        typer.Option(
            "--threads",
            metavar="N",
            min=1,
            help="CPU threads of each process.",
            show_default="the CPUs, divided",
            rich_help_panel=_PANEL,
        ),
    ] = _DEFAULT.num_threads

    def config(self, path: Path, **preferred: Any) -> EngineConfig:
        """The engine's settings for the model in folder `path`. Raises ConfigError.

        `preferred` are the command's own settings; what the user gave counts more.
        """
        given = {
            field.name: value.value if isinstance(value, StrEnum) else value
            for field in fields(self)
            if (value := getattr(self, field.name)) is not None
        }
        return EngineConfig(path=path, **(preferred | given))


def with_records(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one parameter for each field of its parameters that are option records.

    typer sees the fields, the command gets the records.
    """
    signature = inspect.signature(command)
    records: dict[str, Any] = {
        name: parameter.annotation
        for name, parameter in signature.parameters.items()
        if is_dataclass(parameter.annotation)
    }
    keyword = inspect.Parameter.KEYWORD_ONLY
    seen: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        if name not in records:
            seen.append(parameter.replace(kind=keyword))
            continue
        seen += [
            inspect.Parameter(field.name, keyword, default=field.default, annotation=field.type)
            for field in fields(records[name])
        ]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        for name, record in records.items():
            values[name] = record(**{field.name: values.pop(field.name) for field in fields(record)})
        command(**values)

    run.__signature__ = signature.replace(parameters=seen)  # type: ignore[attr-defined]
    return run
