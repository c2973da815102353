"""Captured graphs in the emulation: a replay runs again what was captured, over the memory that it had then.

torch_npu's own functions are called as well, down to the stand-ins, which record nothing. What a card would
do wrong or never end is an error here: a captured call that reads the host's memory, a replay that waits for
an event which nobody recorded, lengths that are changed under a replay that may still be running. Unlike on
a card, what is captured runs then too; and a graph's memory is nobody else's.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map


@dataclass
class Call:
    """One operation, its tensors as they lay when it was called."""

    func: Any
    args: Any
    kwargs: Any
    results: list[Tensor]

    def run(self) -> None:
        found = self.func(*self.args, **self.kwargs)
        if self.func.namespace == "c10d":  # what ranks exchange is there when its work is done
            torch.distributed.Work.unbox(found[-1]).wait()
        for result, again in zip(self.results, tensors(found), strict=True):
            if result.numel() and result.data_ptr() != again.data_ptr():
                result.copy_(again)


@dataclass
class Event:
    """Waiting for an event, and resetting it."""

    event: Any
    recorded: set[int]

    def run(self) -> None:
        assert id(self.event) in self.recorded, "the graph waits for an event that nobody records"
        self.recorded.remove(id(self.event))


@dataclass
class Group:
    """Calls that can be given other arguments."""

    calls: list[Call] = field(default_factory=list)

    def run(self) -> None:
        for call in self.calls:
            call.run()


class Graphs:
    """All graphs of this process. One is captured at a time."""

    def __init__(self) -> None:
        #: By the graph's id, which another has when it is gone.
        self.captured: dict[int, list[Call | Event | Group]] = {}
        #: By the handle, which is kept so that its id stays its own.
        self.groups: dict[int, tuple[Any, Group]] = {}
        self.recorded: set[int] = set()
        self.captures = 0
        self.replays = 0
        self._steps: list[Call | Event | Group] | None = None
        self._group: Group | None = None
        self._update: Group | None = None
        self._is_running = False

    @property
    def is_updating(self) -> bool:
        return self._update is not None

    def note(self, func: Any, args: Any, kwargs: Any, results: Any) -> None:
        """A call that was made."""
        if self._steps is None:
            return
        call = self._kept(func, args, kwargs, tensors(results))
        if self._group is None:
            self._steps.append(call)
        else:
            self._group.calls.append(call)

    def replace(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A call that is not made now, but in the place of the group's."""
        assert self._update is not None
        (own,) = self._update.calls
        assert own.func is func, "a group's operation can not become another"
        self._update.calls = [self._kept(func, args, kwargs, own.results)]
        return tuple(kwargs["out"])

    def _kept(self, func: Any, args: Any, kwargs: Any, results: list[Tensor]) -> Call:
        given = tensors((args, kwargs))
        on_host = [one for one in given if one.device.type == "cpu" and one.dim()]
        assert not on_host, f"{func} reads the host's memory, which a replay would find changed"
        return Call(func, *tree_map(alias, (args, kwargs)), [alias(result) for result in results])

    def install(self) -> None:
        """Come between the engine and torch_npu."""
        import torch_npu  # noqa: PLC0415 - it is this that has just been loaded

        npu = torch_npu.npu
        self._after(npu.NPUGraph, "capture_begin", self._begin)
        self._after(npu.NPUGraph, "capture_end", self._end)
        self._after(npu.NPUGraph, "replay", self._replay)
        self._after(npu.ExternalEvent, "wait", self._wait)
        self._after(npu.ExternalEvent, "record", self._record)
        self._after(npu, "graph_task_group_begin", self._group_begin)
        self._after(npu, "graph_task_group_end", self._group_end)
        self._after(npu, "graph_task_update_begin", self._update_begin)
        self._after(npu, "graph_task_update_end", self._update_end)
        for owner in (npu, npu.Stream):
            self._after(owner, "synchronize", self._wait_for_all)

    @staticmethod
    def _after(owner: Any, name: str, then: Callable[..., None]) -> None:
        own = getattr(owner, name)

        def called(*args: Any, **kwargs: Any) -> Any:
            result = own(*args, **kwargs)
            then(*args, result)
            return result

        setattr(owner, name, called)

    def _begin(self, graph: Any, *_: Any) -> None:
        self._steps = self.captured[id(graph)] = []
        self.captures += 1

    def _end(self, *_: Any) -> None:
        self._steps = None

    def _replay(self, graph: Any, *_: Any) -> None:
        for step in self.captured[id(graph)]:
            step.run()
        self.replays += 1
        self._is_running = True

    def _wait_for_all(self, *_: Any) -> None:
        self._is_running = False

    def _wait(self, event: Any, *_: Any) -> None:
        if self._steps is not None:
            self._steps.append(Event(event, self.recorded))

    def _record(self, event: Any, *_: Any) -> None:
        self.recorded.add(id(event))

    def _group_begin(self, *_: Any) -> None:
        assert self._steps is not None
        self._group = Group()
        self._steps.append(self._group)

    def _group_end(self, _stream: Any, handle: Any) -> None:
        assert self._group is not None
        self.groups[id(handle)] = (handle, self._group)
        self._group = None

    def _update_begin(self, _stream: Any, handle: Any, *_: Any) -> None:
        assert not self._is_running, "a graph that may still be running is changed"
        _, self._update = self.groups[id(handle)]

    def _update_end(self, *_: Any) -> None:
        self._update = None


def alias(value: Any) -> Any:
    """A tensor over the same memory, whatever becomes of the first."""
    return torch.ops.aten.alias(value) if isinstance(value, Tensor) else value


def tensors(value: Any) -> list[Tensor]:
    return [one for one in tree_flatten(value)[0] if isinstance(one, Tensor)]
