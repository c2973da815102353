"""Device profiles: files of variables that tune an accelerator's libraries, as those in ops/profiles.

Owns the reading of such a file and which chip it is for. Never sets a variable: that is the supervisor's, in
the environment of the processes that it starts.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from jobs.errors import SettingsError
from worker.groups import VISIBLE

CHIP = "LONGHAUL_CHIP"
A2, DUO = "800i-a2", "300i-duo"
_CHIPS = (A2, DUO)
_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)")
#: Each group has its own of these.
_PINNED = frozenset({*VISIBLE.values(), "MASTER_PORT", "HCCL_IF_BASE_PORT"})


@dataclass(frozen=True, slots=True)
class Profile:
    """Variables for the libraries of one chip."""

    variables: Mapping[str, str]
    #: 800i-a2 or 300i-duo; None where nobody says.
    chip: str | None


def load_profile(path: Path | None) -> Profile:
    """The profile in this file, an empty one without a file. `SettingsError` names file and line.

    The chip is that of LONGHAUL_CHIP in the environment, else in the file.
    """
    variables = {} if path is None else _parse(path)
    named = variables.pop(CHIP, None)
    chip = os.environ.get(CHIP) or named
    if chip is not None and chip not in _CHIPS:
        raise SettingsError(f"{CHIP} is {chip!r}: known are {', '.join(_CHIPS)}")
    return Profile(MappingProxyType(variables), chip)


def _parse(path: Path) -> dict[str, str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"LONGHAUL_PROFILE: {path} can not be read: {error}") from error
    variables: dict[str, str] = {}
    for number, line in enumerate(map(str.strip, text.splitlines()), start=1):
        if not line or line.startswith("#"):
            continue
        match = _ASSIGNMENT.fullmatch(line)
        problem = "write NAME=VALUE" if match is None else _refusal(match[1], variables)
        if match is None or problem:
            raise SettingsError(f"{path}, line {number}: {line!r}: {problem}")
        variables[match[1]] = _unquoted(match[2])
    return variables


def _refusal(name: str, known: Mapping[str, str]) -> str | None:
    """Why a profile can not set this variable."""
    if name in _PINNED:
        return f"each device group has its own {name}: leave it out"
    if name.startswith("LONGHAUL_") and name != CHIP:
        return "settings of Longhaul belong into the environment or .env"
    return f"{name} was set above" if name in known else None


def _unquoted(value: str) -> str:
    quoted = len(value) >= 2 and value[0] == value[-1] and value[0] in "'\""
    return value[1:-1] if quoted else value
