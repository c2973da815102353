"""The GPU itself: whether there is one and what it has, how a step is recorded on it. Computes nothing.

All that needs a real card is here, so that the rest of the device runs in Triton's interpreter as well.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from model.errors import ConfigError

Replay = Callable[[], None]

#: Memory beyond the cache: activations of a step, the recorded steps, cuBLAS.
_KEPT_SHARE, _KEPT_BYTES = 10, 2**30


def choose(local_rank: int) -> torch.device:
    """This process's GPU, made current. Raises ConfigError where there is none."""
    if not torch.cuda.is_available():
        raise ConfigError(
            f"device cuda: torch {torch.__version__} finds no GPU; see that nvidia-smi lists one and that "
            "torch is a CUDA build, or use device cpu"
        )
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise ConfigError(
            f"device cuda: rank {local_rank} has no GPU of its own, {count} are visible; "
            "lower tensor_parallel_size or see CUDA_VISIBLE_DEVICES"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def spare_bytes() -> int:
    """What the cache may take of the current GPU: free memory, less a tenth or a gigabyte for the steps."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    return max(0, free - max(free // _KEPT_SHARE, _KEPT_BYTES))


def used_bytes() -> int:
    """What is in use of the current GPU's memory, by whichever process."""
    free, total = torch.cuda.mem_get_info()
    return total - free


def multiplies_bfloat16() -> bool:
    """Whether the current GPU does: Ampere and later."""
    return torch.cuda.get_device_capability() >= (8, 0)


def processors() -> int:
    """Streaming multiprocessors of the current GPU."""
    return torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count


class Recorder:
    """Records what runs on the GPU; its recordings share the memory that they compute in."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, run: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        """What runs it again on the same tensors, and its result, which each run overwrites."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()  # kernels are compiled and libraries set up at the first call, which can not be recorded
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = run()
        return graph.replay, result
