"""The `producer` command: parses what was typed, calls the client, turns outcomes into exit statuses.

Exit statuses: 0 all is well (where a job was waited for: every line succeeded), 1 an error or the job failed,
2 some lines failed or the command was mistyped, 130 interrupted.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from jobs.dialogue import Sampling
from jobs.records import JobState, JobStatus, Priority
from jobs.settings import Settings, load_settings
from jobs.storage import Store
from producer.client import Client
from producer.local import local_fleet, while_alive
from producer.reporting import OneLineErrors, say, warn
from producer.results import STDOUT, Written, result_lines, write_results
from producer.submission import Order, Submission
from producer.view import (
    as_json,
    jobs_table,
    results_table,
    status_fields,
    status_table,
    submission_fields,
    unusable_lines,
)
from producer.watch import follower

SOME_FAILED = 2
INTERRUPTED = 130
#: Results shown at the end of a job that was waited for.
PREVIEWED = 5

app = typer.Typer(
    cls=OneLineErrors,
    help="Submit JSONL files of dialogues to a fleet of workers, and collect the answers.",
    epilog="LONGHAUL_REDIS_URL and LONGHAUL_STORE_URL say where things are: in the environment or in .env.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="The job's id, as submit and list show it.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
OutputOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="Where the results go, in input order; - is stdout."),
]
ErrorsOption = Annotated[
    Path | None,
    typer.Option("--errors", metavar="FILE", help="Where failed lines go; the output then holds the others."),
]


@app.command()
def submit(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE", help="JSONL files, globs, .gz, s3:// URLs, or - for standard input."),
    ],
    *,
    model: Annotated[
        str | None,
        typer.Option(
            help="Name of the model; if not given, the one that workers serve. With --local its folder."
        ),
    ] = None,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="System message for dialogues that have none.")
    ] = None,
    prompt_template: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Wraps the last user message, which replaces {text} in it."),
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens to generate per line.")] = None,
    min_tokens: Annotated[int | None, typer.Option(help="Tokens before which no answer ends.")] = None,
    temperature: Annotated[float | None, typer.Option(help="From 0, which is greedy, to 2.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Over 0, up to 1.")] = None,
    top_k: Annotated[int | None, typer.Option(help="0 is off.")] = None,
    min_p: Annotated[
        float | None,
        typer.Option(help="Only tokens at least this share as likely as the likeliest; 0 is off."),
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="On tokens of prompt and answer; over 0, 1 is off.")
    ] = None,
    presence_penalty: Annotated[
        float | None, typer.Option(help="On tokens that the answer has; from -2 to 2, 0 is off.")
    ] = None,
    frequency_penalty: Annotated[
        float | None,
        typer.Option(help="The same, for each time that it has them; from -2 to 2, 0 is off."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Makes sampling reproducible.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Ends an answer; may be repeated.")
    ] = None,
    priority: Annotated[Priority, typer.Option(help="Share of the fleet.")] = Priority.NORMAL,
    strict: Annotated[bool, typer.Option("--strict", help="Create nothing if one line is unusable.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Stay until the job has ended.")] = False,
    json: JsonOption = False,
    local: Annotated[
        bool, typer.Option("--local", help="Run everything on this machine, without services, and wait.")
    ] = False,
    store: Annotated[
        Path | None, typer.Option(metavar="DIR", help="With --local: the folder that is the object storage.")
    ] = None,
    groups: Annotated[
        str | None, typer.Option(help="With --local: device groups, as cpu:0-1; all CPUs if not given.")
    ] = None,
    output: OutputOption = None,
    errors: ErrorsOption = None,
) -> None:
    """Make a job of JSONL lines and print its id.

    A line is a list of messages, an object with `messages` or a `prompt`, or a line of OpenAI's batches.
    Options of sampling hold for the lines that do not say otherwise. Unusable lines come out as errors and do
    not stop the others.

    Examples:

    `producer submit dialogues.jsonl --model internlm2 --wait -o answers.jsonl`

    `zcat day-*.gz | producer submit - --system "Summarize in one sentence." --max-tokens 128`

    `producer submit s3://bucket/in.jsonl --prompt-template "Summarize: {text}" --priority high`

    `producer submit dialogues.jsonl --local --model ./checkpoint -o answers.jsonl`
    """
    if not (wait or local) and (output or errors):
        raise typer.BadParameter("--output and --errors need --wait or --local")
    if not local and (store or groups):
        raise typer.BadParameter("--store and --groups need --local")
    if json and STDOUT in (output, errors):
        raise typer.BadParameter("--json and results on standard output would mix")
    order = Order(
        sources=tuple(files),
        model=model,
        system=system,
        prompt_template=prompt_template,
        sampling=_sampling(
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            seed=seed,
            stop=stop or None,
        ),
        priority=priority,
        strict=strict,
    )
    settings = load_settings()
    if local:
        end, kept = _run_locally(settings, order, store, groups, json=json)
    else:
        client = Client(settings)
        submission = _submitted(client, order, warn_unserved=True)
        if not wait:
            typer.echo(as_json(submission_fields(submission.spec)) if json else submission.spec.id)
            return
        job = submission.spec.id
        end = _ended(
            client.watch(job), json=json, interrupted=f"{job} goes on: `producer watch {job}` follows it"
        )
        kept = client.store
    _collected(kept, end, output, errors)
    raise typer.Exit(_exit_status(end))


@app.command()
def status(job: JobArgument, json: JsonOption = False) -> None:
    """Show where a job stands."""
    now = Client(load_settings()).status(job)
    if json:
        typer.echo(as_json(status_fields(now)))
    else:
        Console().print(status_table(now))


@app.command()
def watch(job: JobArgument, json: JsonOption = False) -> None:
    """Follow a job to its end; the exit status tells how it ended, as that of `submit --wait`."""
    statuses = Client(load_settings()).watch(job)
    end = _ended(statuses, json=json, interrupted=f"{job} goes on")
    raise typer.Exit(_exit_status(end))


@app.command("list")
def list_jobs(
    limit: Annotated[int, typer.Option(min=1, help="Jobs to show, the latest first.")] = 50,
    json: JsonOption = False,
) -> None:
    """List the latest jobs."""
    statuses = Client(load_settings()).jobs(limit)
    if json:
        for each in statuses:
            typer.echo(as_json(status_fields(each)))
    elif statuses:
        Console().print(jobs_table(statuses))
    else:
        say("there are no jobs")


@app.command()
def results(
    job: JobArgument,
    output: OutputOption = None,
    errors: ErrorsOption = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Write what is finished of a job that still runs.")
    ] = False,
) -> None:
    """Write a job's results in the order of its input, to standard output if no file is named.

    Example: `producer results JOB -o answers.jsonl --errors failed.jsonl`
    """
    store = Store.open(load_settings())
    written = write_results(store, job, output=output or STDOUT, errors=errors, partial=partial)
    say(_told(written))


@app.command()
def cancel(job: JobArgument) -> None:
    """Call a job off; what is finished stays, and `producer results` gets it."""
    state = Client(load_settings()).cancel(job)
    say(f"{job} is {state}" if state.final else f"{job} is called off; what was begun is being ended")


def _sampling(**options: object) -> Sampling:
    given = {name: value for name, value in options.items() if value is not None}
    try:
        return msgspec.convert(given, Sampling)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at ")
        raise typer.BadParameter(f"{where.strip('`$.').replace('_', '-')}: {what}") from error


def _run_locally(
    settings: Settings, order: Order, store: Path | None, groups: str | None, *, json: bool
) -> tuple[JobStatus, Store]:
    folder = None if order.model is None else Path(order.model)
    with local_fleet(settings, model=folder, store=store, groups=groups) as fleet:
        job = _submitted(fleet.client, replace(order, model=fleet.model), warn_unserved=False).spec.id
        with fleet.worker() as worker:
            statuses = while_alive(fleet.client.watch(job), worker)
            end = _ended(statuses, json=json, interrupted=f"{job} is being stopped")
        return end, fleet.client.store


def _submitted(client: Client, order: Order, *, warn_unserved: bool) -> Submission:
    """Submit, and say what might surprise."""
    submission = client.submit(order)
    spec = submission.spec
    if spec.rejected:
        warn(f"{spec.rejected} of {spec.lines} lines are unusable and come out as errors")
        say(unusable_lines(submission.unusable, spec.rejected))
    if submission.delay:
        warn(f"the job waits until a worker finds it: {submission.delay}")
    if warn_unserved and not submission.served:
        warn(f"no living worker serves {spec.model}: the job waits for one")
    return submission


def _ended(statuses: Iterator[JobStatus], *, json: bool, interrupted: str) -> JobStatus:
    """Show progress until the job has ended."""
    console = Console(stderr=not json)
    try:
        return follower(console, as_json_lines=json)(statuses, console)
    except KeyboardInterrupt:
        say(interrupted)
        raise typer.Exit(INTERRUPTED) from None


def _collected(store: Store, end: JobStatus, output: Path | None, errors: Path | None) -> None:
    """Write the results where they are wanted; show the first of them, and where all are."""
    job = end.spec.id
    if output is None and errors is None:
        say(f"its results: LONGHAUL_STORE_URL={store.url} producer results {job}")
        return
    written = write_results(store, job, output=output or STDOUT, errors=errors, partial=False)
    if output != STDOUT:
        Console(stderr=True).print(results_table(islice(result_lines(store, end.spec), PREVIEWED)))
    places = " and ".join(str(path) for path in (output, errors) if path is not None)
    say(f"{_told(written)}; in {places}, and in parts under {store.url}/jobs/{job}/output")


def _told(written: Written) -> str:
    text = f"{written.succeeded} lines succeeded, {written.failed} failed"
    return f"{text}, {written.missing} have no result" if written.missing else text


def _exit_status(end: JobStatus) -> int:
    if end.state is not JobState.COMPLETED:
        return 1
    return SOME_FAILED if end.failed else 0
