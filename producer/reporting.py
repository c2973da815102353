"""How the commands speak on standard error, and how errors become one line and an exit status.

Owns both. Standard output is left to what was asked for.
"""

import os
import sys
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from jobs.errors import JobsError
from producer.errors import ADVICE, ProducerError, RefusedError
from producer.view import unusable_lines


class OneLineErrors(TyperGroup):
    """Ends whichever command met a foreseen error with one line and status 1."""

    def invoke(
        self, ctx: Any
    ) -> Any:  # typer keeps its own copy of click's Context, which has no public name
        """Run the command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads what is left
            raise typer.Exit(1) from None
        except RefusedError as error:
            say(unusable_lines(error.unusable, error.total))
            fail(str(error), error.code, error.advice)
        except ProducerError as error:
            fail(str(error), error.code, error.advice)
        except JobsError as error:
            fail(str(error), error.code, ADVICE.get(error.code, ""))
        except OSError as error:
            fail(str(error), "system_error", "free what is full, or choose another place")


def say(text: str) -> None:
    """Something for people, beside the output."""
    typer.echo(text, err=True)


def warn(text: str) -> None:
    """Something that may surprise, but is no error."""
    say(f"warning: {text}")


def fail(what: str, code: str, advice: str) -> NoReturn:
    """One line: what is wrong, its code, what to do; then exit status 1."""
    line = f"error: {what.rstrip('.')} ({code})" + (f": {advice}" if advice else "")
    say(" ".join(line.split()))
    raise typer.Exit(1)
