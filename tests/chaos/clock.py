"""A wall clock that tests can move under running processes: a library in front of the C library's.

Owns the library, made with the machine's C compiler where there is one, and the file that says how far the
clock is off. Each file is one clock: processes that share it move together. Never moves the machine's clock.
"""

import shutil
import struct
import subprocess
from pathlib import Path
from typing import Final

_SOURCE: Final = Path(__file__).with_name("clock.c")
_NANOSECONDS: Final = 1_000_000_000


def compiler() -> str | None:
    """The C compiler of this machine; without one no clock can be moved."""
    return shutil.which("cc") or shutil.which("gcc")


def build(folder: Path) -> Path:
    """The library, made in `folder` unless it is there."""
    library = folder / "clock.so"
    if not library.exists():
        command = [compiler() or "cc", "-shared", "-fPIC", "-O1"]
        subprocess.run([*command, "-o", library, _SOURCE], check=True, timeout=60)
    return library


class Clock:
    """One wall clock."""

    def __init__(self, library: Path, file: Path) -> None:
        self._library = library
        self._file = file
        file.write_bytes(struct.pack("=q", 0))

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to go by this clock."""
        return {"LD_PRELOAD": str(self._library), "CHAOS_CLOCK": str(self._file)}

    def set(self, seconds: float) -> None:
        """Let it be so far ahead of the true one, or behind it."""
        with self._file.open("r+b", buffering=0) as file:
            file.write(struct.pack("=q", round(seconds * _NANOSECONDS)))
