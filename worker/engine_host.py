"""What is asked of an engine, through the deaths of any number of engine processes.

Owns the requests until they are answered: an out-of-memory, a segfault, a lost rank or a hang is an event
here, answered by starting the engine again and resuming what it had, while the worker and its leases stay. A
request that kills engines is found by trying its companions apart (`worker.trials`), and it alone is refused.
Never loads torch and knows no job.
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from jobs.settings import Settings
from model.request import SamplingParams
from worker.engine_process import END_SECONDS, EngineProcess
from worker.errors import EngineStartError
from worker.groups import DeviceGroup, parse_ports
from worker.metrics import Metrics
from worker.protocol import (
    Abort,
    EngineOptions,
    Failed,
    Finished,
    FromEngine,
    Generate,
    Progress,
    Ready,
    Refused,
)
from worker.trials import Trials

log = structlog.get_logger(__name__)

#: Pauses before an engine is started again, by how often in a row none came to answer anything.
_RESTART_SECONDS = (0.0, 1.0, 3.0, 10.0)
#: Starts in a row that may fail, once one has succeeded, before the worker gives up on its devices.
_FAILED_STARTS = 3
#: Deaths of engines in which nothing but a probe was running, before the same.
_FAILED_PROBES = 3
_PROBE = "probe"


@dataclass(frozen=True, slots=True)
class Blamed:
    """The request killed engines that answer others."""

    reason: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request."""

    id: str
    result: Finished | Refused | Blamed
    #: Engine seconds that died with engines while it was in them.
    lost_seconds: float


#: Called from the host's thread; must not block.
Sink = Callable[[Answer], None]


@dataclass(slots=True)
class _Pending:
    """A request without an answer."""

    message: Generate
    sink: Sink
    #: The engine's clock when it was sent; None while no engine has it.
    sent_at: float | None = None
    deaths: int = 0
    lost_seconds: float = 0.0


class EngineHost:
    """One engine and everything asked of it. Safe to use from many threads."""

    def __init__(
        self, options: EngineOptions, environment: dict[str, str], settings: Settings, metrics: Metrics
    ) -> None:
        self._options = options
        self._environment = environment
        self._start_seconds = settings.engine_start_seconds
        self._hang_seconds = settings.engine_hang_seconds
        self._metrics = metrics
        self._changed = threading.Condition()
        self._ready: Ready | None = None
        self._failure: Failed | None = None
        self._ended = threading.Event()
        #: Set when the engine will not come back by itself: the worker has to end.
        self.hopeless = threading.Event()
        self._process: EngineProcess | None = None
        self._pending: dict[str, _Pending] = {}
        #: Of these, the ones that no engine has.
        self._unsent: dict[str, _Pending] = {}
        self._trials: Trials | None = None
        self._probing = False
        #: Whether this engine has answered anything.
        self._proven = False
        self._clock = 0.0
        #: Of the last start, step or answer, by the monotonic clock.
        self._moved_at = time.monotonic()
        self._starts = self._requests = self._failed_starts = self._failed_probes = 0
        self._threads = [
            threading.Thread(target=target, name=name, daemon=True)
            for name, target in (("engine-watcher", self._watch), ("engine-watchdog", self._guard))
        ]

    @classmethod
    def open(cls, group: DeviceGroup, model: Path, settings: Settings, metrics: Metrics) -> "EngineHost":
        """The engine of a device group; nothing is started yet."""
        cpu_group = group.kind == "cpu"
        ranks = group.ranks(settings.tensor_parallel_size)
        options = EngineOptions(
            path=str(model),
            device=group.kind,
            dtype=settings.dtype,
            quantization=settings.quantization,
            tensor_parallel_size=ranks,
            max_model_len=settings.max_model_len,
            kv_cache_bytes=settings.kv_cache_bytes,
            max_num_seqs=settings.max_num_seqs,
            max_step_tokens=settings.max_step_tokens,
            rope_scaling=settings.rope_scaling,
            attention=settings.attention,
            block_size=settings.block_size,
            prefix_caching=settings.prefix_caching,
            master_port=group.master_port(parse_ports(settings.master_ports)) if ranks > 1 else None,
            num_threads=max(1, len(group.devices) // ranks) if cpu_group else None,
            cpus=group.devices if cpu_group else (),
            echo_step_seconds=settings.echo_step_seconds,
        )
        return cls(options, group.environment(), settings, metrics)

    def start(self) -> Ready:
        """Start the engine and wait until its model is loaded; `EngineStartError` says why it can not be."""
        for thread in self._threads:
            thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._failure or self._ended.is_set())
            if self._failure is not None:
                raise EngineStartError(f"{self._failure.message} ({self._failure.code})")
            if self._ready is None:
                raise EngineStartError("the engine was closed before it was ready")
            return self._ready

    def submit(self, messages: Sequence[Generate], sink: Sink) -> None:
        """Ask for answers, which `sink` gets, each once. Their ids must be new."""
        with self._changed:
            for message in messages:
                self._pending[message.id] = self._unsent[message.id] = _Pending(message, sink)
            self._requests += len(messages)
            self._feed()

    def abort(self, request_ids: Iterable[str]) -> None:
        """Forget requests: their sinks hear no more of them."""
        with self._changed:
            unwanted = [each for each in request_ids if self._pending.pop(each, None)]
            sent = [each for each in unwanted if not self._unsent.pop(each, None)]
            if sent and self._process:
                self._process.send([Abort(tuple(sent))])
            self._clear(unwanted)
            self._feed()

    def spent(self, request_ids: Iterable[str]) -> float:
        """Engine seconds that unanswered requests have cost so far, lost ones included."""
        with self._changed:
            asked = [self._pending[each] for each in request_ids if each in self._pending]
            return sum(each.lost_seconds + self._running_seconds(each) for each in asked)

    @property
    def requests(self) -> int:
        """Requests taken since the start."""
        return self._requests

    @property
    def starts(self) -> int:
        """Engine processes started."""
        return self._starts

    @property
    def pid(self) -> int | None:
        """The engine's process, None while there is none."""
        process = self._process
        return process.pid if process else None

    @property
    def idle_seconds(self) -> float:
        """Since the engine last moved while it had something to do; 0 while it has nothing."""
        with self._changed:
            return time.monotonic() - self._moved_at if self._pending else 0.0

    def close(self) -> None:
        """End the engine; what is in flight is dropped."""
        with self._changed:
            self._ended.set()
            process = self._process
            self._changed.notify_all()
        if process is not None:
            process.hang_up()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(END_SECONDS + 5)

    # Feeding the engine. The lock is held in all of these.

    def _feed(self) -> None:
        """Send what may go into the engine now: everything, or one group of suspects."""
        if self._ready is None or self._process is None or not self._unsent:
            return
        if self._trials is None:
            chosen = list(self._unsent)
        elif len(group := self._trials.group) == 1 and not self._proven:
            self._probe(group[0])
            return
        else:
            chosen = [each for each in group if each in self._unsent]
        if not chosen:
            return
        if len(self._unsent) == len(self._pending):  # it had nothing to do until now
            self._moved_at = time.monotonic()
        sending = [self._unsent.pop(each) for each in chosen]
        for each in sending:
            each.sent_at = self._clock
        self._process.send([each.message for each in sending])

    def _probe(self, suspect: str) -> None:
        """Before one request alone is tried the engine has to answer another: the device may be to blame."""
        if self._probing or self._process is None:
            return
        self._probing = True
        self._moved_at = time.monotonic()
        prompt = self._pending[suspect].message.prompt_token_ids[:1]
        self._process.send([Generate(_PROBE, prompt, SamplingParams(max_tokens=1, temperature=0.0))])

    def _clear(self, request_ids: Iterable[str]) -> None:
        """Suspects that are through their trial; after the last of them everything may go in again."""
        if self._trials is None:
            return
        for each in request_ids:
            self._trials.settled(each)
        if not self._trials.group:
            log.info("engine trials over")
            self._trials = None

    def _running_seconds(self, pending: _Pending) -> float:
        return 0.0 if pending.sent_at is None else max(0.0, self._clock - pending.sent_at)

    # The watcher's thread: one engine after another, until closed or hopeless.

    def _watch(self) -> None:
        while not self._ended.is_set():
            process = self._spawn()
            failure: Failed | None = None
            for messages in process.received():
                failure = next((each for each in messages if isinstance(each, Failed)), failure)
                self._handle(messages)
            end = process.end()
            if self._ended.is_set():
                return
            self._bury(process, f"failed: {failure.message}" if failure else end, failure)
            if self.hopeless.is_set():
                return
            failures = self._failed_starts + self._failed_probes
            self._ended.wait(_RESTART_SECONDS[min(failures, len(_RESTART_SECONDS) - 1)])

    def _spawn(self) -> EngineProcess:
        process = EngineProcess(self._options, self._environment)
        with self._changed:
            self._process = process
            self._starts += 1
            self._clock, self._proven, self._probing = 0.0, False, False
            self._moved_at = time.monotonic()
        self._metrics.engine_started()
        log.info("engine started", pid=process.pid, start=self._starts)
        return process

    def _handle(self, messages: list[FromEngine]) -> None:
        answers: list[tuple[Sink, Answer]] = []
        with self._changed:
            self._moved_at = time.monotonic()
            for message in messages:
                match message:
                    case Finished() | Refused():
                        if pending := self._answered(message.id):
                            answers.append((pending.sink, Answer(message.id, message, pending.lost_seconds)))
                    case Progress():
                        self._clock = message.clock
                        self._show(message)
                    case Ready():
                        log.info(
                            "engine ready", max_model_len=message.max_model_len, versions=message.versions
                        )
                        self._ready, self._failed_starts = message, 0
                        self._changed.notify_all()
            if answers and self._trials is not None:
                self._clear([answer.id for _, answer in answers])
            self._feed()
        for sink, answer in answers:
            sink(answer)

    def _answered(self, request_id: str) -> _Pending | None:
        self._proven = True
        if request_id == _PROBE:
            self._probing, self._failed_probes = False, 0
            return None
        return self._pending.pop(request_id, None)

    def _show(self, progress: Progress) -> None:
        self._metrics.engine_state(
            running=progress.running,
            waiting=progress.waiting,
            kv_blocks_used=progress.kv_blocks_used,
            kv_blocks_total=progress.kv_blocks_total,
            device_memory_bytes=progress.device_memory,
        )

    def _bury(self, process: EngineProcess, end: str, failure: Failed | None) -> None:
        """An engine has ended unasked: what it had is resumed, in trials where it was not the first time."""
        blamed: tuple[Sink, Answer] | None = None
        with self._changed:
            had = [each for each in self._pending.values() if each.sent_at is not None]
            if self._ready is None:
                self._start_failed(failure or Failed("engine_start", f"the engine {end} before it was ready"))
            log.error("engine lost", reason=end, in_flight=len(had))
            blamed = self._condemned(end) if self._trials else None
            for each in had:
                each.lost_seconds += self._running_seconds(each)
                each.sent_at = None
                each.deaths += 1
            suspects = [
                each.message.id for each in had if each.deaths > 1 and each.message.id in self._pending
            ]
            if self._trials is None and suspects:
                log.warning("engine trials begin", requests=len(suspects))
                self._trials = Trials(suspects)
            self._unsent = dict(self._pending)
            self._ready, self._process = None, None
            self._changed.notify_all()
        reason = (
            "hung" if process.hung else failure.code if failure else "killed" if "killed" in end else "exited"
        )
        self._metrics.engine_lost(reason)
        if blamed is not None:
            blamed[0](blamed[1])

    def _start_failed(self, failure: Failed) -> None:
        """A first start that fails shows what is wrong with model or device; later ones may be bad luck."""
        self._failed_starts += 1
        if self._starts == 1:
            self._failure = failure
        if self._starts == 1 or self._failed_starts >= _FAILED_STARTS:
            self.hopeless.set()

    def _condemned(self, end: str) -> tuple[Sink, Answer] | None:
        """Judge the group under trial; the one request that is found guilty."""
        assert self._trials is not None  # noqa: S101 - the caller looked
        if self._probing:
            self._failed_probes += 1
            if self._failed_probes >= _FAILED_PROBES:
                log.error("engines die of a probe: the device is to blame")
                self.hopeless.set()
            return None
        if not any(each in self._pending and each not in self._unsent for each in self._trials.group):
            return None  # it died before any of the group was in it
        guilty = self._trials.died()
        if guilty is None:
            return None
        pending = self._pending.pop(guilty)
        lost = pending.lost_seconds + self._running_seconds(pending)
        log.error("request kills engines", request=guilty, deaths=pending.deaths + 1)
        self._clear(())
        reason = f"the engine {end} each time that it had this line, alone at last"
        return pending.sink, Answer(guilty, Blamed(reason), lost)

    # The watchdog's thread

    def _guard(self) -> None:
        while not self._ended.wait(min(1.0, self._hang_seconds / 4)):
            with self._changed:
                process, ready = self._process, self._ready
                busy = self._probing or len(self._unsent) < len(self._pending)
                idle = time.monotonic() - self._moved_at
            if process is None or process.hung:
                continue
            if ready is None and idle > self._start_seconds:
                process.kill(
                    f"it was not ready within {self._start_seconds:.0f} s (LONGHAUL_ENGINE_START_SECONDS)"
                )
            elif ready is not None and busy and idle > self._hang_seconds:
                process.kill(f"it made no step for {self._hang_seconds:g} s (LONGHAUL_ENGINE_HANG_SECONDS)")
