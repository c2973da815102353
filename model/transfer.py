"""Host integers and numbers to the device, without waiting for what the device is doing."""

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
