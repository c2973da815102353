"""The `worker` command."""

import os
import sys
from typing import Annotated

import typer

from jobs.errors import JobsError
from jobs.settings import load_settings
from jobs.telemetry import set_up_logging
from worker.errors import WorkerError
from worker.groups import parse_groups
from worker.supervisor import supervise

app = typer.Typer(
    help="Serve a model: one engine per device group, fed from the job queue.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def _root() -> None:
    """Serve a model: one engine per device group, fed from the job queue."""


@app.command()
def up(
    groups: Annotated[
        str | None,
        typer.Option(
            help="Devices, one engine per group: cpu:0-3, cuda:0, 'npu:0,1,2,3;npu:4,5,6,7'. "
            "[env: LONGHAUL_DEVICE_GROUPS]"
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Checkpoint folder to serve. [env: LONGHAUL_MODEL]")
    ] = None,
) -> None:
    """Run one worker process per device group until SIGTERM, which drains them.

    Where Redis, the store and the model are, the environment says: LONGHAUL_REDIS_URL, LONGHAUL_STORE_URL,
    LONGHAUL_MODEL. A second SIGTERM hands everything back at once.
    """
    given = {"LONGHAUL_DEVICE_GROUPS": groups, "LONGHAUL_MODEL": model}
    os.environ.update({name: value for name, value in given.items() if value is not None})
    if sys.stderr.isatty():
        os.environ.setdefault("LONGHAUL_LOG_FORMAT", "console")
    try:
        settings = load_settings()
        set_up_logging(settings)
        settings.served_model()
        for group in parse_groups(settings.device_groups):
            group.ranks(settings.tensor_parallel_size)
        status = supervise(settings)
    except (JobsError, WorkerError) as error:
        typer.echo(f"error: {error} ({error.code})", err=True)
        raise typer.Exit(1) from error
    raise typer.Exit(status)
