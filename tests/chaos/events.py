"""What the processes of a fleet wrote down of themselves: calls, questions, answers, faults that struck.

Owns the reading of `events.jsonl`, which `injected/chaos_hooks.py` writes. Never judges what it reads.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Event:
    """One entry."""

    #: By the monotonic clock of the machine, which all processes share and no fault moves.
    at: float
    pid: int
    role: str
    #: `ledger.commit`, `store.create`, `engine.ask`, `engine.answer`, or `armed` and `fired` of a fault.
    name: str
    when: str
    args: tuple[Any, ...] = ()
    result: Any = None
    error: str = ""
    #: Requests that an engine was asked or has answered.
    ids: tuple[str, ...] = ()
    #: Of a fault.
    point: str = ""


@dataclass(frozen=True, slots=True)
class LineId:
    """Which line a request to an engine was for, and under which claim."""

    ref: str
    epoch: int
    line: int

    @classmethod
    def parse(cls, request_id: str) -> "LineId | None":
        """Read `job/shard/epoch/…/line`; None for what is no line, a probe."""
        job, *rest = request_id.split("/")
        if len(rest) < 3:
            return None
        return cls(f"{job}/{rest[0]}", int(rest[1]), int(rest[-1]))


class Events:
    """The entries so far, read as they come."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0
        self._all: list[Event] = []
        self._counts: Counter[tuple[str, str]] = Counter()

    def all(self) -> list[Event]:
        """Every entry, in the order of the file."""
        self._read()
        return self._all

    def named(self, name: str, when: str | None = None) -> list[Event]:
        """The entries of one kind."""
        return [event for event in self.all() if event.name == name and when in (None, event.when)]

    def count(self, name: str, when: str) -> int:
        """How many there are; of questions and answers, how many lines they had."""
        self._read()
        return self._counts[name, when]

    @property
    def answered(self) -> int:
        """Lines that engines have answered: how far the fleet has come."""
        return self.count("engine.answer", "before")

    def fired(self) -> list[str]:
        """The points whose fault has struck."""
        return [event.point for event in self.named("fired")]

    def armed(self, pid: int | None = None) -> list[str]:
        """The points that processes, or one, have taken and not come to."""
        left = Counter(event.point for event in self.named("armed") if pid in (None, event.pid))
        left.subtract(event.point for event in self.named("fired") if pid in (None, event.pid))
        return list((+left).elements())

    def _read(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._position)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._position += len(whole)
        for line in whole.splitlines():
            entry = json.loads(line)
            for name in ("args", "ids"):
                if name in entry:
                    entry[name] = tuple(entry[name])
            event = Event(**entry)
            self._all.append(event)
            self._counts[event.name, event.when] += len(event.ids) or 1
