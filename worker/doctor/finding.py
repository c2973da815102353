"""What a check finds: a status, what was seen, and what to do about it. Never looks at anything itself."""

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """How bad it is."""

    OK = "ok"
    #: A worker will run, and may not do so well, or not for long.
    WARN = "warn"
    #: A worker will not run, or lose work.
    FAIL = "fail"
    #: Not looked at, because an earlier check failed.
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one check says."""

    status: Status
    found: str
    #: What to do; empty where nothing is to be done or `found` says it.
    advice: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A verdict under the name of its check."""

    check: str
    status: Status
    found: str
    advice: str


def ok(found: str) -> Verdict:
    """All is well."""
    return Verdict(Status.OK, found)


def warn(found: str, advice: str) -> Verdict:
    """It runs, but."""
    return Verdict(Status.WARN, found, advice)


def fail(found: str, advice: str = "") -> Verdict:
    """It does not run."""
    return Verdict(Status.FAIL, found, advice)
