"""Finds the request that kills engines: halves of halves of those that were in one, down to one alone.

Owns which of the suspects may be in the engine together. Pure bookkeeping: never sends anything.
"""

from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")

#: Deaths of engines with a request alone in them that prove it guilty: the first may be a coincidence.
_ALONE = 2


def halves(items: Sequence[Item]) -> list[Sequence[Item]]:
    """Both halves, the first the larger; one where there is one."""
    middle = (len(items) + 1) // 2
    return [part for part in (items[:middle], items[middle:]) if part]


class Trials:
    """The suspects of an engine's death, tried in groups, one group at a time."""

    def __init__(self, suspects: Sequence[str]) -> None:
        #: The last is tried next.
        self._groups = [list(group) for group in reversed(halves(suspects))]
        #: Times that a request died alone.
        self._alone: dict[str, int] = {}

    @property
    def group(self) -> tuple[str, ...]:
        """The requests under trial; none when all are cleared or found guilty."""
        return tuple(self._groups[-1]) if self._groups else ()

    def settled(self, request_id: str) -> None:
        """A request is answered or not wanted any more."""
        self._groups = [
            left for group in self._groups if (left := [each for each in group if each != request_id])
        ]

    def died(self) -> str | None:
        """The engine died with the group under trial; the request that is found guilty, if one is."""
        group = self._groups.pop()
        if len(group) > 1:
            self._groups += [list(half) for half in reversed(halves(group))]
            return None
        (request_id,) = group
        self._alone[request_id] = self._alone.get(request_id, 0) + 1
        if self._alone[request_id] >= _ALONE:
            return request_id
        self._groups.append(group)
        return None
