"""The arguments and options that commands share: their names, help and completion, each said once.

Owns how they are typed. What they do is said where they are used.
"""

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from jobs.dialogue import Sampling
from jobs.errors import JobsError
from jobs.records import Priority
from jobs.settings import load_settings
from producer.client import Client
from producer.deadline import moment_of
from producer.delivery import STDOUT
from producer.view import printable

#: Jobs that a shell's completion offers.
_OFFERED = 20


def _latest_jobs(incomplete: str) -> list[tuple[str, str]]:
    """What a shell offers for JOB; nothing where Redis is away: an error would garble what is being typed."""
    try:
        client = Client(load_settings())
        statuses = client.jobs(_OFFERED)
        client.close()
    except JobsError:
        return []
    return [
        (each.spec.id, f"{each.state}, {each.spec.lines} lines, {printable(each.spec.source)}")
        for each in statuses
        if each.spec.id.startswith(incomplete)
    ]


Job = Annotated[
    str,
    typer.Argument(
        metavar="JOB", help="The job's id, as submit and list show it.", autocompletion=_latest_jobs
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="Where the results go, in input order; - is stdout."),
]
Errors = Annotated[
    Path | None,
    typer.Option("--errors", metavar="FILE", help="Where failed lines go; the output then holds the others."),
]
Wait = Annotated[bool, typer.Option("--wait", help="Stay until the job has ended.")]
Share = Annotated[Priority, typer.Option(help="Share of the fleet.")]
ShareAsBefore = Annotated[Priority | None, typer.Option(help="Share of the fleet; as before if not given.")]
Deadline = Annotated[
    float | None,
    typer.Option(
        metavar="WHEN",
        parser=moment_of,
        help="End the job by then, finished or not: 90m, 2h, 1d12h, or a time like 2026-01-31T18:00.",
    ),
]

MaxTokens = Annotated[int | None, typer.Option(help="Most tokens to generate per line.")]
MinTokens = Annotated[int | None, typer.Option(help="Tokens before which no answer ends.")]
Temperature = Annotated[float | None, typer.Option(help="From 0, which is greedy, to 2.")]
TopP = Annotated[float | None, typer.Option(help="Over 0, up to 1.")]
TopK = Annotated[int | None, typer.Option(help="0 is off.")]
MinP = Annotated[
    float | None,
    typer.Option(help="Only tokens at least this share as likely as the likeliest; 0 is off."),
]
RepetitionPenalty = Annotated[
    float | None, typer.Option(help="On tokens of prompt and answer; over 0, 1 is off.")
]
PresencePenalty = Annotated[
    float | None, typer.Option(help="On tokens that the answer has; from -2 to 2, 0 is off.")
]
FrequencyPenalty = Annotated[
    float | None, typer.Option(help="The same, for each time that it has them; from -2 to 2, 0 is off.")
]
Seed = Annotated[int | None, typer.Option(help="Makes sampling reproducible.")]
Stop = Annotated[list[str] | None, typer.Option(metavar="TEXT", help="Ends an answer; may be repeated.")]


def sampling_of(**options: object) -> Sampling:
    """The sampling that was typed; a value out of its limits is a mistyped command."""
    given = {name: value for name, value in options.items() if value is not None}
    try:
        return msgspec.convert(given, Sampling)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at ")
        raise typer.BadParameter(f"{where.strip('`$.').replace('_', '-')}: {what}") from error


def check_destinations(
    output: Path | None, errors: Path | None, *, json: bool, waits: bool = True, need: str = ""
) -> None:
    """Results come after an end that was waited for, else `need` says how; and not among JSON."""
    if not waits and (output or errors):
        raise typer.BadParameter(f"--output and --errors need {need}")
    if json and STDOUT in (output, errors):
        raise typer.BadParameter("--json and results on standard output would mix")
