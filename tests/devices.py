"""On which devices the engine's tests run: the CPU and what else is there, or the one that is simulated.

A test that takes `device` runs on each device at hand. tests/npu and tests/cuda start processes that simulate
a device and run the same tests there, but for those marked `thorough`.
"""

import os
from typing import Any

import pytest

from model.config import DeviceName

#: The variable that names the device which this process simulates: its tests run on no other.
SIMULATED = "TEST_DEVICE"
#: What a simulating process is to run: pytest's arguments.
SELECTED = (
    "-m",
    "device and not thorough",
    *(
        f"tests/integration/test_engine_{part}.py"
        for part in ("families", "flash", "golden", "parallel", "prefix", "requests", "sampling")
    ),
)


def at_hand() -> list[str]:
    """Names of devices, as `EngineConfig.device` has them."""
    if SIMULATED in os.environ:
        return [os.environ[SIMULATED]]
    import torch  # noqa: PLC0415 - most tests need none

    return ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def options(device: DeviceName, **asked: Any) -> dict[str, Any]:
    """Of an engine on this device. NPUs have no small blocks: whatever is asked, theirs have 128 tokens."""
    if device == "npu":
        asked.pop("block_size", None)
    return {"device": device, "num_threads": 1, **asked}


def require(device: DeviceName, ranks: int) -> None:
    """Skip the test where there are not as many of these."""
    if device == "cuda" and SIMULATED not in os.environ:
        import torch  # noqa: PLC0415

        if torch.cuda.device_count() < ranks:
            pytest.skip(f"{ranks} ranks need as many GPUs")
