"""Numbers between host and device, without waiting for what the device is doing."""

from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def upload(values: NDArray[Any], where: torch.device) -> Tensor:
    """The values as a tensor at `where`.

    A copy from ordinary memory would wait until the GPU has done all that it was told before. From pinned
    memory it takes its turn, and torch keeps the memory until then.
    """
    host = torch.from_numpy(values)
    return host.pin_memory().to(where, non_blocking=True) if where.type == "cuda" else host.to(where)


class Download:
    """A tensor on its way to the host: the copy takes its turn, and what comes after it is not waited for."""

    def __init__(self, values: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if not values.is_cuda:
            self._host = values.cpu()
            return
        self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        self._host.copy_(values, non_blocking=True)
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record()

    def result(self, meanwhile: Callable[[], None]) -> Tensor:
        """The values, once they are there; until then `meanwhile` is called, which may give up by raising."""
        while self._event and not self._event.query():  # type: ignore[no-untyped-call]
            meanwhile()
        return self._host
