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
        "shards": spec.shards,
        "committed_shards": status.committed_shards,
        "prompt_tokens": status.prompt_tokens,
        "completion_tokens": status.completion_tokens,
        "created_at": spec.created_at,
        "started_at": status.started_at,
        "finished_at": status.finished_at,
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
        "source": _printable(spec.source),
        "lines": f"{status.done_lines} of {spec.lines} done",
        "succeeded": str(status.succeeded),
        "failed": f"{status.failed} ({spec.rejected} unusable)" if spec.rejected else str(status.failed),
        "shards": f"{status.committed_shards} of {spec.shards} committed",
        "tokens": f"{status.prompt_tokens} read, {status.completion_tokens} generated",
        "submitted": _moment(spec.created_at),
        "started": _moment(status.started_at),
        "finished": _moment(status.finished_at),
    }
    if status.problem:
        rows["problem"] = Text(status.problem, style="yellow")
    for name, value in rows.items():
        table.add_row(Text(name, style="bold"), value if isinstance(value, Text) else Text(value))
    return table


def jobs_table(statuses: Iterable[JobStatus]) -> Table:
    """Jobs, one a row."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("job", min_width=_JOB_ID_CHARS, no_wrap=True)  # must be whole, to be copied
    for name in ("state", "model"):
        table.add_column(name, no_wrap=True)
    for name in ("lines", "done", "failed"):
        table.add_column(name, justify="right")
    table.add_column("source", overflow="ellipsis", no_wrap=True)
    for status in statuses:
        spec = status.spec
        table.add_row(
            spec.id,
            Text(status.state, style=_STATE_STYLES.get(status.state, "")),
            spec.model,
            str(spec.lines),
            str(status.done_lines),
            str(status.failed),
            Text(_printable(spec.source)),
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
    return f"{text}; {status.problem}" if status.problem else text


def unusable_lines(rejects: Sequence[Reject], total: int) -> str:
    """The first unusable lines, one a row, and how many more there are."""
    rows = [f"  line {reject.line}: {reject.code}: {_printable(reject.message)}" for reject in rejects]
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
        custom_id = Text(_printable(read["custom_id"] or ""))
        if read["error"]:
            why = _trimmed(f"{read['error']['code']}: {read['error']['message']}")
            table.add_row(number, custom_id, Text(why, "red"), "")
            continue
        body = read["response"]["body"]
        text = _trimmed(body["choices"][0]["message"]["content"])
        table.add_row(number, custom_id, Text(text), str(body["usage"]["completion_tokens"]))
    return table


def _trimmed(text: str) -> str:
    text = _printable(" ".join(text.split()))
    return text if len(text) <= _ANSWER_CHARS else f"{text[: _ANSWER_CHARS - 1]}…"


def _printable(text: str) -> str:
    """Without control characters, by which a model or an input could steer the terminal."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def _moment(seconds: float | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
