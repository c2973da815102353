"""`model doctor`: what an accelerator computes, next to the CPU's results → one line a check, and a report.

It shows and writes what `devices/npu_doctor.py` finds.
"""

import json
import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from model.commands import console
from model.commands.options import JsonOption


class Examined(StrEnum):
    """The devices that can be examined."""

    NPU = "npu"


def doctor(
    device: Annotated[Examined, typer.Option(help="What to examine.")] = Examined.NPU,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write the report there as JSON, too."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare each operation of a card with the CPU's, and try ranks, graphs, memory and speed.

    Exit status 1 if a check failed, or there is no card.
    """
    # torch takes seconds to import: not needed for --help.
    from model.devices import npu_doctor  # noqa: PLC0415

    findings = []
    with console.errors(as_json):
        simulated = npu_doctor.is_simulated()
        if simulated and not as_json:
            typer.echo("SIMULATED: computed on the host; this says nothing of a card")
        for finding in npu_doctor.examine():
            findings.append(finding)
            if not as_json:
                typer.echo(f"{finding.status:8}{finding.check}: {finding.found}")
    report = {
        "device": device.value,
        "simulated": simulated,
        "checks": [asdict(finding) for finding in findings],
    }
    if output:
        output.write_text(json.dumps(report, indent=1) + "\n")
    if as_json:
        typer.echo(json.dumps(report))
    if any(finding.status == "failed" for finding in findings):
        sys.exit(1)
