"""One process per device group: started, restarted with back-off, drained on SIGTERM.

Owns the processes of one machine. Never talks to Redis, the store or a device.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from types import FrameType

import structlog

from jobs.settings import Settings
from worker.groups import DeviceGroup, parse_groups

log = structlog.get_logger(__name__)

#: sysexits.h, EX_CONFIG: a worker process ends so where starting it again would not help.
EXIT_CONFIG = 78

_BACK_OFF_SECONDS = (1.0, 2.0, 5.0, 15.0, 60.0)
#: A process that lived this long begins its back-off anew.
_HEALTHY_SECONDS = 300.0
#: What a drain may take beyond its grace: handing back, ending the engine.
_END_SECONDS = 20.0


@dataclass
class _Child:
    """A group's process and its history."""

    group: DeviceGroup
    process: subprocess.Popen[bytes]
    started: float
    failures: int = 0
    restart_at: float | None = None


def supervise(settings: Settings) -> int:
    """Keep a process per group until told to stop; its exit status is the worst of theirs."""
    groups = parse_groups(settings.device_groups)
    woken, stopping = threading.Event(), _Stop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stopping.asked)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: woken.set())
    children = [_start(group) for group in groups]
    status = 0
    while children:
        woken.wait(0.5)
        woken.clear()
        for child in children:
            stopping.pass_on(child)
        if stopping.overdue(settings):
            for child in children:
                log.error("worker does not end: killed", group=str(child.group))
                child.process.kill()
        for child in [child for child in children if child.process.poll() is not None]:
            status = max(status, _buried(child, children, stopping))
    return status


class _Stop:
    """How often the supervisor was told to stop, and which children have heard it how often."""

    def __init__(self) -> None:
        self.times = 0
        self._since = 0.0
        self._told: dict[int, int] = {}

    def asked(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        del number, frame
        self.times += 1
        self._since = self._since or time.monotonic()

    def pass_on(self, child: _Child) -> None:
        """Tell a child as often as the supervisor was told, twice at most."""
        heard = self._told.get(child.process.pid, 0)
        if heard < min(self.times, 2) and child.process.poll() is None:
            self._told[child.process.pid] = heard + 1
            child.process.send_signal(signal.SIGTERM)

    def overdue(self, settings: Settings) -> bool:
        """Whether children that still live have had the grace and more."""
        grace = settings.drain_seconds + _END_SECONDS if self.times == 1 else _END_SECONDS
        return self.times > 0 and time.monotonic() - self._since > grace


def _start(group: DeviceGroup, failures: int = 0) -> _Child:
    process = subprocess.Popen(  # noqa: S603 - our own module
        [sys.executable, "-P", "-m", "worker.process", str(group.index)],
        start_new_session=True,  # a terminal's Ctrl-C reaches the supervisor alone, which drains
        stdin=subprocess.PIPE,  # ends when the supervisor does, however it dies
    )
    log.info("worker process started", group=str(group), pid=process.pid)
    return _Child(group, process, time.monotonic(), failures)


def _buried(child: _Child, children: list[_Child], stopping: _Stop) -> int:
    """Deal with a child that has ended: gone for good, or started again after its back-off."""
    status = child.process.returncode
    hopeless = status == EXIT_CONFIG
    if stopping.times or hopeless or status == os.EX_OK:
        children.remove(child)
        (log.error if hopeless else log.info)("worker process ended", group=str(child.group), status=status)
        return 1 if hopeless else 0
    now = time.monotonic()
    if child.restart_at is None:
        child.failures = 1 if now - child.started > _HEALTHY_SECONDS else child.failures + 1
        pause = _BACK_OFF_SECONDS[min(child.failures, len(_BACK_OFF_SECONDS)) - 1]
        child.restart_at = now + pause
        log.error("worker process died", group=str(child.group), status=status, restart_seconds=pause)
    elif now >= child.restart_at:
        children[children.index(child)] = _start(child.group, child.failures)
    return 0
