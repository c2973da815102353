"""The ports of a machine's groups: for ranks to meet, for HCCL, for metrics. Holds none of them.

A running worker holds its own, so beside one these checks warn of it.
"""

from pathlib import Path

from worker.doctor.finding import Verdict, fail, ok, warn
from worker.doctor.subject import Subject
from worker.groups import parse_ports, port_is_free

_NET = Path("/proc/sys/net/ipv4")


def master(subject: Subject) -> Verdict | None:
    """Each group of several ranks has a port to meet at."""
    ports = parse_ports(subject.settings.master_ports)
    meeting = [group for group in subject.groups if group.ranks(subject.settings.tensor_parallel_size) > 1]
    if not meeting:
        return None
    chosen = {group: group.master_port(ports) for group in meeting}
    found = ", ".join(f"{port} for {group}" for group, port in chosen.items())
    taken = [
        group.master_ports(ports).start
        for group in meeting
        if chosen[group] != group.master_ports(ports).start
    ]
    if taken:
        return warn(
            f"{found}; {', '.join(map(str, taken))} in use",
            "nothing, if another worker runs here; else set LONGHAUL_MASTER_PORTS to a range that is free",
        )
    return ok(found)


def hccl(subject: Subject) -> Verdict | None:
    """No connection of anybody's takes a port that NPUs reach each other by."""
    stretches = [group.hccl_ports for group in subject.of_kind("npu") if len(group.devices) > 1]
    if not stretches:
        return None
    span = f"{stretches[0].start}-{stretches[-1].stop - 1}"
    busy = [port for ports in stretches for port in ports if not port_is_free(port, "")]
    if busy:
        return warn(f"{busy[0]} of {span} is in use", "end what listens there, if it is no worker of ours")
    first, last = _numbers("ip_local_port_range")
    reserved = _reserved()
    loose = [port for ports in stretches for port in ports if first <= port <= last and port not in reserved]
    if loose:
        return warn(
            f"{span}, which any outgoing connection may take",
            f"sysctl -w net.ipv4.ip_local_reserved_ports={span}",
        )
    return ok(span)


def metrics(subject: Subject) -> Verdict | None:
    """Each group's metrics can be read somewhere."""
    settings = subject.settings
    if settings.metrics_port == 0:
        return None
    ports = [settings.metrics_port + group.index for group in subject.groups]
    if ports[-1] > 65535:
        return fail(f"{ports[-1]} is no port", "lower LONGHAUL_METRICS_PORT")
    busy = [port for port in ports if not port_is_free(port, settings.metrics_host)]
    if busy:
        return fail(
            f"{settings.metrics_host}:{busy[0]} is in use, or no address of this machine",
            "end what listens there (a running worker does), or set LONGHAUL_METRICS_PORT or _HOST",
        )
    return ok(f"{settings.metrics_host}:{'-'.join(str(port) for port in sorted({ports[0], ports[-1]}))}")


def _numbers(name: str) -> tuple[int, int]:
    """A pair out of the kernel's settings; an empty range where there is none."""
    try:
        first, last = (_NET / name).read_text(encoding="utf-8").split()
    except (OSError, ValueError):  # not Linux as we know it
        return 1, 0
    return int(first), int(last)


def _reserved() -> frozenset[int]:
    try:
        text = (_NET / "ip_local_reserved_ports").read_text(encoding="utf-8").strip()
    except OSError:
        return frozenset()
    spans = [part.partition("-") for part in text.split(",") if part]
    return frozenset(port for first, _, last in spans for port in range(int(first), int(last or first) + 1))
