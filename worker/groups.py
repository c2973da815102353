"""Device groups: which devices one engine gets, and the environment that pins it to them.

Owns the reading of LONGHAUL_DEVICE_GROUPS. Never loads an accelerator's library: all of this happens before.
"""

import os
import re
import socket
from dataclasses import dataclass

from worker.errors import DeviceGroupError

_GROUP = re.compile(r"(cpu|cuda|npu):(\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*)")
#: What each kind of device calls its list of visible devices.
_VISIBLE = {"cuda": "CUDA_VISIBLE_DEVICES", "npu": "ASCEND_RT_VISIBLE_DEVICES"}
#: The seed's range for MASTER_PORT, and a range of ports per group for HCCL.
_MASTER_PORTS = tuple(range(20000, 20051))
_HCCL_BASE, _HCCL_STRIDE = 60000, 32


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceGroup:
    """Devices of one kind that serve one engine together."""

    #: Place in LONGHAUL_DEVICE_GROUPS, from 0.
    index: int
    #: cpu, cuda or npu.
    kind: str
    devices: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.kind}:{','.join(map(str, self.devices))}"

    def ranks(self, cpu_ranks: int) -> int:
        """Processes of the engine: one per accelerator; `cpu_ranks` share a group of CPUs."""
        if self.kind != "cpu":
            return len(self.devices)
        if cpu_ranks > len(self.devices):
            raise DeviceGroupError(
                f"{self}: {cpu_ranks} ranks need as many CPUs: name more, "
                "or lower LONGHAUL_TENSOR_PARALLEL_SIZE"
            )
        return cpu_ranks

    def environment(self) -> dict[str, str]:
        """Variables that must stand before torch or a driver is loaded."""
        if self.kind == "cpu":
            # Threads that wait by spinning keep the CPU from the one they wait for: beside other busy
            # processes a step took twenty times as long. A short spin costs a few percent of a quiet machine.
            return {
                "OMP_NUM_THREADS": str(len(self.devices)),
                "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "1000"),
                "CUDA_VISIBLE_DEVICES": "",
            }
        pinned = {_VISIBLE[self.kind]: ",".join(map(str, self.devices))}
        if self.kind == "npu":
            pinned["HCCL_IF_BASE_PORT"] = str(_HCCL_BASE + _HCCL_STRIDE * self.index)
        return pinned

    def master_port(self) -> int:
        """The group's rendezvous port: 20000 + its index, or the next one of the range that is free."""
        first = self.index % len(_MASTER_PORTS)
        for port in _MASTER_PORTS[first:] + _MASTER_PORTS[:first]:
            if _free(port):
                return port
        raise DeviceGroupError(f"no free MASTER_PORT in {_MASTER_PORTS[0]}-{_MASTER_PORTS[-1]}")


def parse_groups(text: str) -> tuple[DeviceGroup, ...]:
    """Read `npu:0,1,2,3;npu:4,5,6,7` or `cpu:0-3`; `DeviceGroupError` says what can not be read."""
    groups: list[DeviceGroup] = []
    taken: set[tuple[str, int]] = set()
    for index, part in enumerate(filter(None, (part.strip() for part in text.split(";")))):
        match = _GROUP.fullmatch(part)
        if match is None:
            raise DeviceGroupError(f"device group {part!r}: write cpu:0-3, cuda:0 or npu:0,1,2,3")
        kind, devices = match[1], _numbers(match[2])
        for device in devices:
            if (kind, device) in taken:
                raise DeviceGroupError(f"{kind}:{device} is named twice in {text!r}")
            taken.add((kind, device))
        groups.append(DeviceGroup(index=index, kind=kind, devices=devices))
    if not groups:
        raise DeviceGroupError("no device group: set LONGHAUL_DEVICE_GROUPS, for example to cpu:0-3")
    return tuple(groups)


def _numbers(text: str) -> tuple[int, ...]:
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        span = range(int(first), int(last or first) + 1)
        if not span:
            raise DeviceGroupError(f"device range {part!r} is empty")
        numbers.extend(span)
    return tuple(numbers)


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
