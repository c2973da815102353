"""How findings look: a table for people, one JSON object for programs. Owns no decision."""

from collections.abc import Sequence

import msgspec
from rich.table import Table
from rich.text import Text

from worker.doctor.finding import Finding, Status

_STYLES = {Status.OK: "green", Status.WARN: "yellow", Status.FAIL: "bold red", Status.SKIP: "dim"}


def findings_table(findings: Sequence[Finding]) -> Table:
    """One row a finding: what was found, and below it what to do."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("check", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("found", overflow="fold")
    for finding in findings:
        said = Text(finding.found)
        if finding.advice:
            said.append(f"\n→ {finding.advice}", style="bold")
        table.add_row(finding.check, Text(finding.status, style=_STYLES[finding.status]), said)
    return table


def as_json(findings: Sequence[Finding]) -> str:
    """Whether all is well, and every finding."""
    passed = all(finding.status is not Status.FAIL for finding in findings)
    return msgspec.json.encode({"ok": passed, "checks": findings}).decode()
