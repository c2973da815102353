"""How jobs and results look: as JSON for programs, as tables for people. Owns no decision and no input."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

import msgspec
from rich.table import Table
from rich.text import Text

from jobs.records import JobSpec, JobState, JobStatus, Reject

_STATE_STYLES: Mapping[JobState, str] = {
    JobState.COMPLETED: "green",
    JobState.FAILED: "red",
    JobState.CANCELLED: "yellow",
    JobState.EXPIRED: "yellow",
}
_ANSWER_CHARS = 160
_JOB_ID_CHARS = 26


def failed_so_far(status: JobStatus) -> int:
    """Lines that failed, whether their shards are committed or not."""
    return status.failed + status.checkpointed_failed


def status_fields(status: JobStatus) -> dict[str, object]:
    """A job as flat JSON; times are Unix seconds."""
    spec = status.spec
    return {
        "job": spec.id,
        "state": status.state,
        "model": spec.model,
        "priority": spec.priority,
        "source": spec.source,
        "lines": spec.lines,
        "rejected": spec.rejected,
        "done": status.done_lines,
        "succeeded": status.succeeded,
        "failed": status.failed,
        "checkpointed": status.checkpointed,
        "checkpointed_failed": status.checkpointed_failed,
        "failed_so_far": failed_so_far(status),
        "shards": spec.shards,
        "committed_shards": status.committed_shards,
        "prompt_tokens": status.prompt_tokens,
        "completion_tokens": status.completion_tokens,
        "device_seconds": status.device_seconds,
        "wasted_device_seconds": status.wasted_device_seconds,
        "created_at": spec.created_at,
        "deadline": spec.deadline,
        "started_at": status.started_at,
        "finished_at": status.finished_at,
        "retry_of": spec.retry_of,
        "reuse_of": spec.reuse_of,
        "problem": status.problem,
    }


def submission_fields(spec: JobSpec) -> dict[str, object]:
    """What became of a submission, as flat JSON."""
    return {
        "job": spec.id,
        "model": spec.model,
        "lines": spec.lines,
        "rejected": spec.rejected,
        "shards": spec.shards,
        "input_bytes": spec.input_bytes,
        "input_sha256": spec.input_sha256,
        "deadline": spec.deadline,
        "retry_of": spec.retry_of,
        "reuse_of": spec.reuse_of,
    }


def as_json(value: object) -> str:
    """One line of JSON."""
    return msgspec.json.encode(value).decode()


def status_table(status: JobStatus) -> Table:
    """One job, field by field."""
    spec = status.spec
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    rows: dict[str, str | Text] = {
        "job": spec.id,
        "state": Text(status.state, style=_STATE_STYLES.get(status.state, "")),
        "model": spec.model,
        "source": printable(spec.source),
        "lines": f"{status.done_lines} of {spec.lines} done",
        "succeeded": str(status.succeeded),
        "failed": f"{failed_so_far(status)}" + (f" ({spec.rejected} unusable)" if spec.rejected else ""),
        "shards": f"{status.committed_shards} of {spec.shards} committed",
        "tokens": f"{status.prompt_tokens} read, {status.completion_tokens} generated",
        "submitted": _moment(spec.created_at),
        "started": _moment(status.started_at),
        "finished": _moment(status.finished_at),
    }
    if spec.deadline is not None:
        rows["deadline"] = _moment(spec.deadline)
    if spec.retry_of is not None:
        rows["retry of"] = spec.retry_of
    if spec.reuse_of is not None:
        rows["reuses"] = spec.reuse_of
    if status.problem:
        rows["problem"] = Text(printable(status.problem), style="yellow")
    for name, value in rows.items():
        table.add_row(Text(name, style="bold"), value if isinstance(value, Text) else Text(value))
    return table


def jobs_table(statuses: Sequence[JobStatus]) -> Table:
    """Jobs, one a row; their deadlines where one has any."""
    deadlines = any(status.spec.deadline is not None for status in statuses)
    table = Table(box=None, padding=(0, 2, 0, 0), expand=True)
    table.add_column("job", min_width=_JOB_ID_CHARS, no_wrap=True)  # must be whole, to be copied
    table.add_column("state", no_wrap=True)
    table.add_column("model", overflow="ellipsis")  # gives way where the terminal is narrow
    for name in ("lines", "done", "failed"):
        table.add_column(name, justify="right", no_wrap=True)
    if deadlines:
        table.add_column("deadline UTC", no_wrap=True)
    table.add_column("source", overflow="ellipsis", no_wrap=True, ratio=1)  # takes what the others leave
    for status in statuses:
        spec = status.spec
        table.add_row(
            spec.id,
            Text(status.state, style=_STATE_STYLES.get(status.state, "")),
            spec.model,
            str(spec.lines),
            str(status.done_lines),
            str(failed_so_far(status)),
            *([_moment(spec.deadline, "%m-%d %H:%M")] if deadlines else []),
            Text(printable(spec.source)),
        )
    return table


def summary(status: JobStatus) -> str:
    """A job's end in one line."""
    text = (
        f"{status.spec.id} {status.state}: {status.succeeded} of {status.spec.lines} lines succeeded, "
        f"{status.failed} failed"
    )
    if status.started_at and status.finished_at:
        seconds = max(status.finished_at - status.started_at, 1e-3)
        rate = status.completion_tokens / seconds
        text += f"; {status.completion_tokens} tokens in {seconds:.1f} s ({rate:.0f} tokens/s)"
    return f"{text}; {printable(status.problem)}" if status.problem else text


def unusable_lines(rejects: Sequence[Reject], total: int) -> str:
    """The first unusable lines, one a row, and how many more there are."""
    rows = [f"  line {reject.line}: {reject.code}: {printable(reject.message)}" for reject in rejects]
    if total > len(rejects):
        rows.append(f"  … and {total - len(rejects)} more")
    return "\n".join(rows)


def results_table(lines: Iterable[bytes]) -> Table:
    """Result lines, one a row, their texts trimmed."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("line", justify="right")
    table.add_column("custom_id", no_wrap=True, max_width=24, overflow="ellipsis")
    table.add_column("result")
    table.add_column("tokens", justify="right")
    for line in lines:
        read = msgspec.json.decode(line)
        number = read["id"].rpartition("-")[2]
        custom_id = Text(printable(read["custom_id"] or ""))
        if read["error"]:
            why = _trimmed(f"{read['error']['code']}: {read['error']['message']}")
            table.add_row(number, custom_id, Text(why, "red"), "")
            continue
        body = read["response"]["body"]
        text = _trimmed(body["choices"][0]["message"]["content"])
        table.add_row(number, custom_id, Text(text), str(body["usage"]["completion_tokens"]))
    return table


def _trimmed(text: str) -> str:
    text = printable(" ".join(text.split()))
    return text if len(text) <= _ANSWER_CHARS else f"{text[: _ANSWER_CHARS - 1]}…"


def printable(text: str) -> str:
    """The text without control characters, by which a model or an input could steer the terminal."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def _moment(seconds: float | None, form: str = "%Y-%m-%d %H:%M:%S UTC") -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime(form)
