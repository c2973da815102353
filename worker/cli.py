"""The `worker` command: parses what was typed, turns outcomes into exit statuses."""

import os
import sys
from typing import Annotated

import typer
from rich.console import Console

from jobs.errors import JobsError
from jobs.ledger import Ledger
from jobs.settings import load_settings
from jobs.storage import Store
from jobs.telemetry import set_up_logging
from model.errors import ModelError
from worker.doctor.examination import examine
from worker.doctor.finding import Status
from worker.doctor.subject import Subject
from worker.doctor.view import as_json, findings_table
from worker.errors import WorkerError
from worker.groups import parse_groups
from worker.matrix import check_groups, served_name
from worker.profiles import load_profile
from worker.rebuild import rebuild as rebuild_job
from worker.rebuild import show, stored_jobs
from worker.supervisor import supervise

app = typer.Typer(
    help="Serve a model: one engine per device group, fed from the job queue.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

GroupsOption = Annotated[
    str | None,
    typer.Option(
        help="Devices, one engine per group: cpu:0-3, cuda:0, 'npu:0,1,2,3;npu:4,5,6,7'. "
        "[env: LONGHAUL_DEVICE_GROUPS]"
    ),
]
ModelOption = Annotated[str | None, typer.Option(help="Checkpoint folder to serve. [env: LONGHAUL_MODEL]")]


@app.callback()
def _root() -> None:
    """Serve a model: one engine per device group, fed from the job queue."""


@app.command()
def up(groups: GroupsOption = None, model: ModelOption = None) -> None:
    """Run one worker process per device group until SIGTERM, which drains them.

    Where Redis, the store and the model are, the environment says: LONGHAUL_REDIS_URL, LONGHAUL_STORE_URL,
    LONGHAUL_MODEL. A second SIGTERM hands everything back at once.
    """
    _into_environment(groups, model)
    if sys.stderr.isatty():
        os.environ.setdefault("LONGHAUL_LOG_FORMAT", "console")
    try:
        settings = load_settings()
        set_up_logging(settings)
        device_groups, profile = parse_groups(settings.device_groups), load_profile(settings.profile)
        served_name(device_groups, settings)
        check_groups(device_groups, settings, profile.chip)
        status = supervise(settings, device_groups, profile)
    except (JobsError, ModelError, WorkerError) as error:
        typer.echo(f"error: {error} ({error.code})", err=True)
        raise typer.Exit(1) from error
    raise typer.Exit(status)


@app.command()
def doctor(
    groups: GroupsOption = None,
    model: ModelOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check what a worker here needs, from Redis to the model's files, and say what to do.

    Nothing is loaded and nothing is changed. Exit status 1 if a check failed.
    """
    _into_environment(groups, model)
    findings = list(examine(Subject()))
    if json:
        typer.echo(as_json(findings))
    else:
        Console().print(findings_table(findings))
    raise typer.Exit(int(any(finding.status is Status.FAIL for finding in findings)))


@app.command()
def rebuild(
    jobs: Annotated[list[str] | None, typer.Argument(metavar="JOB...", help="Ids of jobs.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All jobs in the store.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON line for each job.")] = False,
) -> None:
    """Make jobs known again to a Redis that lost them, as the store has them.

    Jobs that Redis knows are left alone. Finished parts stay; lines of others are generated again.

    Example: `worker rebuild --all`, after a FLUSHALL
    """
    if bool(jobs) == every:
        raise typer.BadParameter("give the ids of jobs, or --all")
    try:
        settings = load_settings()
        store, ledger = Store.open(settings), Ledger.open(settings)
        for job in jobs or stored_jobs(store):
            show(rebuild_job(store, ledger, job), as_json=json)
    except JobsError as error:
        typer.echo(f"error: {error} ({error.code})", err=True)
        raise typer.Exit(1) from error


def _into_environment(groups: str | None, model: str | None) -> None:
    """The settings are read from there, by the processes that are started as well."""
    given = {"LONGHAUL_DEVICE_GROUPS": groups, "LONGHAUL_MODEL": model}
    os.environ.update({name: value for name, value in given.items() if value is not None})
