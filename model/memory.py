"""How much host memory is left, for caches and made-up weights, and how much is in use. Takes none itself."""

import os
from pathlib import Path


def available_memory() -> int:
    """Bytes of host memory still to be had: the machine's, or this process's control group's if less."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    group = Path("/sys/fs/cgroup")
    limit, used = group / "memory.max", group / "memory.current"
    if limit.exists() and used.exists() and (most := limit.read_text(encoding="ascii").strip()) != "max":
        free = min(free, max(0, int(most) - int(used.read_text(encoding="ascii"))))
    return free


def resident_memory() -> int:
    """Bytes of host memory that this process and those it started have in use."""
    listed = (path.read_text(encoding="ascii") for path in Path("/proc/self/task").glob("*/children"))
    children = [pid for text in listed for pid in text.split()]
    return sum(_resident(pid) for pid in ("self", *children))


def _resident(pid: str) -> int:
    try:
        pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    except FileNotFoundError:  # it has ended meanwhile
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
