"""What a user is told of a job, from its submission to its end: what may surprise, progress, results.

Owns those words, and the exit status that tells how a job ended. Never decides what happens to the job.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import typer
from rich.console import Console

from jobs.records import JobSpec, JobState, JobStatus
from jobs.storage import Store
from producer.delivery import STDOUT, Written, write_results
from producer.reporting import say, warn
from producer.results import result_lines
from producer.retry import Retried
from producer.submission import Submission
from producer.view import results_table, unusable_lines
from producer.watch import follower

SOME_FAILED = 2
INTERRUPTED = 130
#: Results shown at the end of a job that was waited for.
_PREVIEWED = 5


def announce(submission: Submission, *, warn_unserved: bool) -> None:
    """Say what might surprise."""
    spec = submission.spec
    if spec.rejected:
        warn(f"{spec.rejected} of {spec.lines} lines are unusable and come out as errors")
        say(unusable_lines(submission.unusable, spec.rejected))
    if submission.delay:
        warn(f"the job waits until a worker finds it: {submission.delay}")
    if warn_unserved and not submission.served:
        warn(f"no living worker serves {spec.model}: the job waits for one")


def announce_reuse(spec: JobSpec) -> None:
    """Say whose finished lines are taken over."""
    if spec.reuse_of is None:
        say("there is no earlier job of the same content, model and parameters: every line is generated")
    else:
        say(f"finished lines of {spec.reuse_of} are taken over")


def announce_retry(retried: Retried) -> None:
    """Say how many lines are tried again, and what is left out."""
    origin, submission = retried.origin, retried.submission
    if submission is None:
        say(f"{origin.id} has no lines to try again: no job was made")
    else:
        say(f"{submission.spec.lines} of {origin.lines} lines of {origin.id} are tried again")
    if origin.rejected:
        say(f"{origin.rejected} lines are left out: they were refused at submission and would be again")


def ended(statuses: Iterator[JobStatus], *, json: bool, interrupted: str) -> JobStatus:
    """Show progress until the job has ended."""
    console = Console(stderr=not json)
    try:
        return follower(console, as_json_lines=json)(statuses, console)
    except KeyboardInterrupt:
        say(interrupted)
        raise typer.Exit(INTERRUPTED) from None


def collect(store: Store, end: JobStatus, output: Path | None, errors: Path | None) -> None:
    """Write the results where they are wanted; show the first of them, and where all are."""
    job, origin = end.spec.id, end.spec.retry_of
    if output is None and errors is None:
        say(f"its results: LONGHAUL_STORE_URL={store.url} producer results {origin or job}{_merge(origin)}")
        return
    written = write_results(store, job, output=output or STDOUT, errors=errors, partial=False)
    if output != STDOUT:
        Console(stderr=True).print(results_table(islice(result_lines(store, end.spec), _PREVIEWED)))
    places = " and ".join(str(path) for path in (output, errors) if path is not None)
    say(f"{told(written)}; in {places}, and in parts under {store.url}/jobs/{job}/output")
    if origin is not None:
        say(f"as one job with what {origin} has: producer results {origin}{_merge(origin)}")


def _merge(origin: str | None) -> str:
    """A retry is of use with the job that was tried again."""
    return "" if origin is None else " --merge"


def told(written: Written) -> str:
    """The counts as words."""
    parts = [f"{written.succeeded} lines succeeded", f"{written.failed} failed"]
    if written.missing:
        parts.append(f"{written.missing} have no result")
    if written.retried:
        parts.append(f"{written.retried} are from retries")
    return ", ".join(parts)


def exit_status(end: JobStatus) -> int:
    """How the job ended, as the commands' exit statuses say it."""
    if end.state is not JobState.COMPLETED:
        return 1
    return SOME_FAILED if end.failed else 0
