"""The `producer` command: parses what was typed, calls the client, turns outcomes into exit statuses.

Exit statuses: 0 all is well (where a job was waited for: every line succeeded), 1 an error or the job failed,
2 some lines failed or the command was mistyped, 130 interrupted.
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from jobs.records import JobStatus, Priority
from jobs.settings import Settings, load_settings
from jobs.storage import Store
from producer import options
from producer.client import Client
from producer.delivery import STDOUT, write_results
from producer.following import (
    announce,
    announce_retry,
    announce_reuse,
    collect,
    ended,
    exit_status,
    told,
)
from producer.local import local_fleet, while_alive
from producer.reporting import OneLineErrors, say, warn
from producer.retry import Retry
from producer.submission import Order, Submission
from producer.view import as_json, jobs_table, status_fields, status_table, submission_fields

app = typer.Typer(
    cls=OneLineErrors,
    help="Submit JSONL files of dialogues to a fleet of workers, and collect the answers.",
    epilog="LONGHAUL_REDIS_URL and LONGHAUL_STORE_URL say where things are: in the environment or in .env.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


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
    max_tokens: options.MaxTokens = None,
    min_tokens: options.MinTokens = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    presence_penalty: options.PresencePenalty = None,
    frequency_penalty: options.FrequencyPenalty = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    priority: options.Share = Priority.NORMAL,
    deadline: options.Deadline = None,
    strict: Annotated[bool, typer.Option("--strict", help="Create nothing if one line is unusable.")] = False,
    reuse: Annotated[
        bool,
        typer.Option(
            "--reuse",
            help="Take over finished lines of an earlier job with the same content, model and parameters.",
        ),
    ] = False,
    wait: options.Wait = False,
    json: options.Json = False,
    local: Annotated[
        bool, typer.Option("--local", help="Run everything on this machine, without services, and wait.")
    ] = False,
    store: Annotated[
        Path | None, typer.Option(metavar="DIR", help="With --local: the folder that is the object storage.")
    ] = None,
    groups: Annotated[
        str | None, typer.Option(help="With --local: device groups, as cpu:0-1; all CPUs if not given.")
    ] = None,
    output: options.Output = None,
    errors: options.Errors = None,
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
    options.check_destinations(output, errors, json=json, waits=wait or local, need="--wait or --local")
    if not local and (store or groups):
        raise typer.BadParameter("--store and --groups need --local")
    order = Order(
        sources=tuple(files),
        model=model,
        system=system,
        prompt_template=prompt_template,
        sampling=options.sampling_of(
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
            stop=stop,
        ),
        priority=priority,
        deadline=deadline,
        strict=strict,
        reuse=reuse,
    )
    settings = load_settings()
    if local:
        end, kept = _run_locally(settings, order, store, groups, json=json)
        collect(kept, end, output, errors)
        raise typer.Exit(exit_status(end))
    client = Client(settings)
    submission = _submitted(client, order, warn_unserved=True)
    _go_on(client, submission, wait=wait, json=json, output=output, errors=errors)


@app.command()
def retry(
    job: options.Job,
    *,
    failed_only: Annotated[
        bool,
        typer.Option(
            "--failed-only",
            help="Leave lines alone that have no result at all, as those of a job that was called off.",
        ),
    ] = False,
    max_tokens: options.MaxTokens = None,
    min_tokens: options.MinTokens = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    presence_penalty: options.PresencePenalty = None,
    frequency_penalty: options.FrequencyPenalty = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    priority: options.ShareAsBefore = None,
    deadline: options.Deadline = None,
    wait: options.Wait = False,
    json: options.Json = False,
    output: options.Output = None,
    errors: options.Errors = None,
) -> None:
    """Make a job of the lines of JOB that failed or have no result, and print its id.

    JOB must have ended. What is not given is as in JOB; no deadline is taken over. Options of sampling given
    here hold for every line, also for those that say otherwise themselves. Lines that were refused at
    submission, and lines that an earlier retry has answered, are not tried again; if nothing is left, no job
    is made, no id is printed and the exit status is 0.

    `producer results JOB --merge` then gives the results of both as one.

    Example: `producer retry JOB --max-tokens 1024 --wait`
    """
    options.check_destinations(output, errors, json=json, waits=wait, need="--wait")
    order = Retry(
        job=job,
        failed_only=failed_only,
        sampling=options.sampling_of(
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
            stop=stop,
        ),
        priority=priority,
        deadline=deadline,
    )
    client = Client(load_settings())
    retried = client.retry(order)
    announce_retry(retried)
    if retried.submission is None:
        if json:
            typer.echo(as_json({"job": None, "retry_of": job}))
        return
    announce(retried.submission, warn_unserved=True)
    _go_on(client, retried.submission, wait=wait, json=json, output=output, errors=errors)


@app.command()
def status(job: options.Job, json: options.Json = False) -> None:
    """Show where a job stands."""
    now = Client(load_settings()).status(job)
    if json:
        typer.echo(as_json(status_fields(now)))
    else:
        Console().print(status_table(now))


@app.command()
def watch(job: options.Job, json: options.Json = False) -> None:
    """Follow a job to its end; the exit status tells how it ended, as that of `submit --wait`.

    Lines and tokens count as soon as they are finished; tokens per second are those of the last minute, and
    the time left is what it takes if it goes on so.
    """
    end = ended(Client(load_settings()).watch(job), json=json, interrupted=f"{job} goes on")
    raise typer.Exit(exit_status(end))


@app.command("list")
def list_jobs(
    limit: Annotated[int, typer.Option(min=1, help="Jobs to show, the latest first.")] = 50,
    json: options.Json = False,
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
    job: options.Job,
    *,
    output: options.Output = None,
    errors: options.Errors = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Write what is finished of a job that still runs.")
    ] = False,
    merge: Annotated[
        bool,
        typer.Option("--merge", help="Put the results of retries in the place of failed and missing lines."),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON; needs --output.")] = False,
) -> None:
    """Write a job's results in the order of its input, to standard output if no file is named.

    With --merge a line that failed or is missing comes from the latest retry that has an answer to it, under
    JOB's own id: the output looks like that of one job.

    Example: `producer results JOB --merge -o answers.jsonl --errors failed.jsonl`
    """
    target = output or STDOUT
    options.check_destinations(target, errors, json=json)
    store = Store.open(load_settings())
    written = write_results(store, job, output=target, errors=errors, partial=partial, merge=merge)
    if json:
        typer.echo(as_json({"job": job, **asdict(written)}))
    else:
        say(told(written))


@app.command()
def cancel(job: options.Job, json: options.Json = False) -> None:
    """Call a job off; what is finished stays, and `producer results` gets it."""
    cancelled = Client(load_settings()).cancel(job)
    state = cancelled.state
    if cancelled.unmarked:
        warn(f"should Redis lose the job, the store does not say that it is called off: {cancelled.unmarked}")
    if json:
        typer.echo(as_json({"job": job, "state": state}))
    else:
        say(f"{job} is {state}" if state.final else f"{job} is called off; what was begun is being ended")


def _go_on(
    client: Client,
    submission: Submission,
    *,
    wait: bool,
    json: bool,
    output: Path | None,
    errors: Path | None,
) -> None:
    """Print the job and leave it, or stay with it to its end."""
    spec = submission.spec
    if not wait:
        typer.echo(as_json(submission_fields(spec)) if json else spec.id)
        return
    interrupted = f"{spec.id} goes on: `producer watch {spec.id}` follows it"
    end = ended(client.watch(spec.id), json=json, interrupted=interrupted)
    collect(client.store, end, output, errors)
    raise typer.Exit(exit_status(end))


def _run_locally(
    settings: Settings, order: Order, store: Path | None, groups: str | None, *, json: bool
) -> tuple[JobStatus, Store]:
    folder = None if order.model is None else Path(order.model)
    with local_fleet(settings, model=folder, store=store, groups=groups) as fleet:
        job = _submitted(fleet.client, replace(order, model=fleet.model), warn_unserved=False).spec.id
        with fleet.worker() as worker:
            statuses = while_alive(fleet.client.watch(job), worker)
            end = ended(statuses, json=json, interrupted=f"{job} is being stopped")
        return end, fleet.client.store


def _submitted(client: Client, order: Order, *, warn_unserved: bool) -> Submission:
    submission = client.submit(order)
    announce(submission, warn_unserved=warn_unserved)
    if order.reuse:
        announce_reuse(submission.spec)
    return submission
