"""What every command shows the same way: errors as one line, and progress where someone looks."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from model.errors import ModelError

#: Exit status of a command that Ctrl-C ended: 128 + SIGINT, as shells have it.
INTERRUPTED = 130


@contextmanager
def errors(as_json: bool) -> Iterator[None]:
    """Turn a ModelError into `error[code]: …` on stderr and exit status 1, and Ctrl-C into status 130."""
    try:
        yield
    except ModelError as error:
        if as_json:
            typer.echo(json.dumps({"status": "failed", "error": {"code": error.code, "message": str(error)}}))
        typer.echo(f"error[{error.code}]: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        sys.exit(INTERRUPTED)


@contextmanager
def byte_progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show bytes (done, total) as a bar on stderr, where that is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
