"""How to sample, as options: the fields of SamplingParams that someone at a terminal wants."""

from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from model.request import SamplingParams

_PANEL = "Sampling"


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """Fields of SamplingParams under the same names; greedy unless a temperature is given."""

    temperature: Annotated[float, typer.Option(help="0 is greedy.", rich_help_panel=_PANEL)] = 0.0
    top_p: Annotated[
        float,
        typer.Option(help="Sample from the likeliest tokens that have this share.", rich_help_panel=_PANEL),
    ] = 1.0
    top_k: Annotated[
        int,
        typer.Option(metavar="K", help="Sample from the K likeliest; 0 is all.", rich_help_panel=_PANEL),
    ] = 0
    min_p: Annotated[
        float,
        typer.Option(
            help="Sample from tokens this share as likely as the likeliest.", rich_help_panel=_PANEL
        ),
    ] = 0.0
    repetition_penalty: Annotated[
        float,
        typer.Option(help="Above 1: tokens that are there already are less likely.", rich_help_panel=_PANEL),
    ] = 1.0
    max_tokens: Annotated[
        int,
        typer.Option(metavar="TOKENS", min=1, help="Longest answer.", rich_help_panel=_PANEL),
    ] = 512
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", help="The same seed, the same answer.", rich_help_panel=_PANEL),
    ] = None
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="End the answer before TEXT; repeatable.", rich_help_panel=_PANEL),
    ] = None
    ignore_eos: Annotated[
        bool,
        typer.Option("--ignore-eos", help="Go on past the model's own end.", rich_help_panel=_PANEL),
    ] = False

    def params(self) -> SamplingParams:
        """The engine's parameters. Raises InvalidParams."""
        return SamplingParams(**(asdict(self) | {"stop": tuple(self.stop or ())}))
