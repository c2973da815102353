"""Device groups: which devices one engine gets, and the environment that pins it to them.

Owns the reading of LONGHAUL_DEVICE_GROUPS and LONGHAUL_MASTER_PORTS. Never loads an accelerator's library:
all of this happens before.
"""

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from worker.errors import DeviceGroupError

_GROUP = re.compile(r"(cpu|cuda|npu|echo):(\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*)")
_PORTS = re.compile(r"(\d{1,5})-(\d{1,5})")
#: What each kind of accelerator calls its list of visible devices.
VISIBLE: Mapping[str, str] = {"cuda": "CUDA_VISIBLE_DEVICES", "npu": "ASCEND_RT_VISIBLE_DEVICES"}
#: HCCL takes 16 ports from its base on; each group has a stretch of its own.
_HCCL_BASE, _HCCL_STRIDE = 60000, 32


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceGroup:
    """Devices of one kind that serve one engine together."""

    #: Place in LONGHAUL_DEVICE_GROUPS, from 0, and how many groups stand there.
    index: int
    of: int = 1
    #: cpu, cuda, npu, or echo: no device, and an engine that answers without a model.
    kind: str
    devices: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.kind}:{','.join(map(str, self.devices))}"

    def ranks(self, cpu_ranks: int) -> int:
        """Processes of the engine: one per accelerator; `cpu_ranks` share a group of CPUs."""
        if self.kind == "echo":
            return 1
        if self.kind != "cpu":
            return len(self.devices)
        if cpu_ranks > len(self.devices):
            raise DeviceGroupError(
                f"{self}: {cpu_ranks} ranks need as many CPUs: name more, "
                "or lower LONGHAUL_TENSOR_PARALLEL_SIZE"
            )
        return cpu_ranks

    def environment(self, profile: Mapping[str, str] | None = None) -> dict[str, str]:
        """Variables that must stand before torch or a driver is loaded.

        Of the profile's those are taken that are not set here already, and for accelerators alone.
        """
        if self.kind not in VISIBLE:
            # Threads that wait by spinning keep the CPU from the one they wait for: beside other busy
            # processes a step took twenty times as long. A short spin costs a few percent of a quiet machine.
            return {
                "OMP_NUM_THREADS": str(len(self.devices) if self.kind == "cpu" else 1),
                "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "1000"),
                "CUDA_VISIBLE_DEVICES": "",
            }
        chosen = {name: value for name, value in (profile or {}).items() if name not in os.environ}
        pinned = {VISIBLE[self.kind]: ",".join(map(str, self.devices))}
        if self.kind == "npu":
            pinned["HCCL_IF_BASE_PORT"] = str(self.hccl_ports.start)
        return chosen | pinned

    @property
    def hccl_ports(self) -> range:
        """The ports that are kept for the group's ranks to reach each other's NPUs."""
        first = _HCCL_BASE + _HCCL_STRIDE * self.index
        return range(first, first + _HCCL_STRIDE)

    def master_ports(self, ports: range) -> range:
        """This group's ports of the range: the first plus its place, and every `of`-th from there.

        No two groups of a machine can thus choose the same one, whatever else is taken.
        """
        own = ports[self.index :: self.of]
        if not own:
            raise DeviceGroupError(
                f"{self.of} device groups need as many ports: LONGHAUL_MASTER_PORTS has {len(ports)}"
            )
        return own

    def master_port(self, ports: range) -> int:
        """Where the group's ranks meet: the first of its own ports that is free."""
        for port in self.master_ports(ports):
            if port_is_free(port):
                return port
        raise DeviceGroupError(
            f"{self}: no free MASTER_PORT in {ports.start}-{ports.stop - 1}: end what listens there, "
            "or set LONGHAUL_MASTER_PORTS to another range"
        )


def parse_groups(text: str) -> tuple[DeviceGroup, ...]:
    """Read `npu:0,1,2,3;npu:4,5,6,7` or `cpu:0-3`; `DeviceGroupError` says what can not be read."""
    groups: list[DeviceGroup] = []
    taken: set[tuple[str, int]] = set()
    parts = [part.strip() for part in text.split(";") if part.strip()]
    for index, part in enumerate(parts):
        match = _GROUP.fullmatch(part)
        if match is None:
            raise DeviceGroupError(f"device group {part!r}: write cpu:0-3, cuda:0, npu:0,1,2,3 or echo:0")
        kind, devices = match[1], _numbers(match[2])
        for device in devices:
            if (kind, device) in taken:
                raise DeviceGroupError(f"{kind}:{device} is named twice in {text!r}: let one group have it")
            taken.add((kind, device))
        groups.append(DeviceGroup(index=index, of=len(parts), kind=kind, devices=devices))
    if not groups:
        raise DeviceGroupError("no device group: set LONGHAUL_DEVICE_GROUPS, for example to cpu:0-3")
    return tuple(groups)


def parse_ports(text: str) -> range:
    """Read `20000-20050`, both ends included; `DeviceGroupError` where that is no range of ports."""
    match = _PORTS.fullmatch(text)
    ports = range(int(match[1]), int(match[2]) + 1) if match else range(0)
    if not ports or ports.start < 1 or ports.stop > 65536:
        raise DeviceGroupError(f"LONGHAUL_MASTER_PORTS {text!r}: write a range of ports, as 20000-20050")
    return ports


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen there now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _numbers(text: str) -> tuple[int, ...]:
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        span = range(int(first), int(last or first) + 1)
        if not span:
            raise DeviceGroupError(f"device range {part!r} is empty")
        numbers.extend(span)
    return tuple(numbers)
