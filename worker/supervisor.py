"""One process per device group: started, restarted with back-off, drained on SIGTERM.

Owns the processes of one machine, and the environment that each starts in. Never talks to Redis, the store
or a device.
"""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import FrameType

import structlog

from jobs.settings import Settings
from worker.display import Standing, fleet_display
from worker.groups import DeviceGroup
from worker.profiles import Profile
from worker.report import REPORT_FD, Reports

log = structlog.get_logger(__name__)

#: sysexits.h, EX_CONFIG: a worker process ends so where starting it again would not help.
EXIT_CONFIG = 78

_BACK_OFF_SECONDS = (1.0, 2.0, 5.0, 15.0, 60.0)
#: A process that lived this long begins its back-off anew.
_HEALTHY_SECONDS = 300.0
#: What a drain may take beyond its grace: handing back, ending the engine.
_END_SECONDS = 20.0
#: What handing back at once may take.
_STOP_SECONDS = 5.0


@dataclass
class _Child:
    """A group's process and its history."""

    group: DeviceGroup
    profile: Profile
    process: subprocess.Popen[bytes]
    reports: Reports
    started: float = field(default_factory=time.monotonic)
    failures: int = 0
    restarts: int = 0
    #: What earlier processes of the group have done.
    lines_before: int = 0
    tokens_before: int = 0
    engine_starts_before: int = 0
    restart_at: float | None = None
    #: Not to be started again.
    ended: bool = False

    @property
    def dead(self) -> bool:
        return self.process.poll() is not None

    def standing(self) -> Standing:
        """How the group looks from here."""
        self.reports.read(time.monotonic())
        told = self.reports.latest
        return Standing(
            group=str(self.group),
            state=self._state(),
            pid=None if self.dead else self.process.pid,
            restarts=self.restarts,
            engine_starts=self.engine_starts_before + (told.engine_starts if told else 0),
            shards=told.shards if told and not self.dead else 0,
            lines=self.lines_before + (told.lines if told else 0),
            tokens=self.tokens_before + (told.tokens if told else 0),
            tokens_per_second=0.0 if self.dead else self.reports.tokens_per_second(),
        )

    def _state(self) -> str:
        if self.ended:
            return "failed" if self.process.returncode == EXIT_CONFIG else "ended"
        if self.dead:
            return "restarting"
        return self.reports.latest.state if self.reports.latest else "starting"


def supervise(settings: Settings, groups: Sequence[DeviceGroup], profile: Profile) -> int:
    """Keep a process per group until told to stop; its exit status is the worst of theirs."""
    bell, stopping = _Bell(), _Stop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stopping.asked)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    status = 0
    with fleet_display(settings) as show:
        children = [_start(group, profile) for group in groups]
        while living := [child for child in children if not child.ended]:
            show([child.standing() for child in children])
            bell.wait(0.5)
            for child in living:
                stopping.pass_on(child)
            if stopping.overdue(settings):
                _kill(living)
            for child in [child for child in living if child.dead]:
                status = max(status, _buried(child, children, stopping))
    return status


class _Bell:
    """Rings when a signal arrives. An Event would not do: a handler that sets it can meet its lock held."""

    def __init__(self) -> None:
        self._reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def wait(self, seconds: float) -> None:
        """Until it rings, for so many seconds at most."""
        if select.select([self._reading], [], [], seconds)[0]:
            os.read(self._reading, 4096)


class _Stop:
    """How often the supervisor was told to stop, and which children have heard it how often."""

    def __init__(self) -> None:
        #: When it was told to drain and, again, to stop at once.
        self._asked: list[float] = []
        self._told: dict[int, int] = {}

    @property
    def begun(self) -> bool:
        return bool(self._asked)

    def asked(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        del number, frame
        self._asked.append(time.monotonic())

    def pass_on(self, child: _Child) -> None:
        """Tell a child as often as the supervisor was told, twice at most."""
        heard = self._told.get(child.process.pid, 0)
        if heard < min(len(self._asked), 2) and not child.dead:
            self._told[child.process.pid] = heard + 1
            child.process.send_signal(signal.SIGTERM)

    def overdue(self, settings: Settings) -> bool:
        """Whether children that still live have had their time."""
        now, asked = time.monotonic(), self._asked
        drained = bool(asked) and now - asked[0] > settings.drain_seconds + _END_SECONDS
        return drained or (len(asked) > 1 and now - asked[1] > _STOP_SECONDS)


def _start(group: DeviceGroup, profile: Profile) -> _Child:
    reports = Reports()
    process = subprocess.Popen(  # noqa: S603 - our own module
        [sys.executable, "-P", "-m", "worker.process", str(group.index)],
        env={
            **os.environ,
            **group.environment(profile.variables),
            REPORT_FD: str(reports.descriptor),
        },
        pass_fds=(reports.descriptor,),
        start_new_session=True,  # a terminal's Ctrl-C reaches the supervisor alone, which drains
        stdin=subprocess.PIPE,  # ends when the supervisor does, however it dies
    )
    reports.started()
    log.info("worker process started", group=str(group), pid=process.pid)
    return _Child(group, profile, process, reports)


def _start_again(old: _Child) -> _Child:
    new, last = _start(old.group, old.profile), old.standing()
    old.reports.close()
    new.failures, new.restarts = old.failures, old.restarts + 1
    new.lines_before, new.tokens_before = last.lines, last.tokens
    new.engine_starts_before = last.engine_starts
    return new


def _kill(children: Sequence[_Child]) -> None:
    for child in children:
        if not child.dead:
            log.error("worker does not end: killed", group=str(child.group))
            child.process.kill()


def _buried(child: _Child, children: list[_Child], stopping: _Stop) -> int:
    """Deal with a child that has ended: gone for good, or started again after its back-off."""
    status = child.process.returncode
    hopeless = status == EXIT_CONFIG
    if stopping.begun or hopeless or status == os.EX_OK:
        child.ended = True
        (log.error if hopeless else log.info)("worker process ended", group=str(child.group), status=status)
        return 1 if hopeless else 0
    now = time.monotonic()
    if child.restart_at is None:
        child.failures = 1 if now - child.started > _HEALTHY_SECONDS else child.failures + 1
        pause = _BACK_OFF_SECONDS[min(child.failures, len(_BACK_OFF_SECONDS)) - 1]
        child.restart_at = now + pause
        log.error("worker process died", group=str(child.group), status=status, restart_seconds=pause)
    elif now >= child.restart_at:
        children[children.index(child)] = _start_again(child)
    return 0
