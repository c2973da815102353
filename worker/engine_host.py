"""Starts, feeds, watches and ends the engine's processes.

Owns the life of one engine: an out-of-memory, a segfault or a lost rank in it is an event here, answered by
failing the requests in flight with `EngineDiedError` and starting the engine again, while the worker and its
leases stay. Never loads torch and knows no job.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path

import msgspec
import structlog

from jobs.settings import Settings
from model.request import SamplingParams
from worker.errors import EngineDiedError, EngineStartError, RequestRefusedError
from worker.groups import DeviceGroup
from worker.protocol import (
    Abort,
    EngineOptions,
    Failed,
    Finished,
    FromEngine,
    Generate,
    Ready,
    Refused,
    ToEngine,
    receive_from_engine,
    send,
)

log = structlog.get_logger(__name__)

#: Seconds that an engine asked to end may take before it is killed.
_END_SECONDS = 10.0
_RESTART_SECONDS = (0.5, 2.0, 10.0, 30.0)


class EngineHost:
    """One engine and everything asked of it. Safe to use from many threads."""

    def __init__(self, options: EngineOptions, environment: dict[str, str], start_seconds: float) -> None:
        self._options = options
        self._environment = environment
        self._start_seconds = start_seconds
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._sending = threading.Lock()
        self._ready: Ready | None = None
        self._failure: Failed | None = None
        self._ended = threading.Event()
        #: Set when the engine will not come back by itself: the worker has to end.
        self.hopeless = threading.Event()
        self._pending: dict[str, Future[Finished]] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._starts = 0
        self._requests = 0
        self._watcher = threading.Thread(target=self._watch, name="engine-watcher", daemon=True)

    @classmethod
    def open(cls, group: DeviceGroup, model: Path, settings: Settings) -> "EngineHost":
        """The engine of a device group; nothing is started yet."""
        cpu_group = group.kind == "cpu"
        ranks = group.ranks(settings.tensor_parallel_size)
        options = EngineOptions(
            path=str(model),
            device=group.kind,
            dtype=settings.dtype,
            tensor_parallel_size=ranks,
            max_model_len=settings.max_model_len,
            kv_cache_bytes=settings.kv_cache_bytes,
            max_num_seqs=settings.max_num_seqs,
            max_step_tokens=settings.max_step_tokens,
            rope_scaling=settings.rope_scaling,
            attention=settings.attention,
            block_size=settings.block_size,
            prefix_caching=settings.prefix_caching,
            master_port=group.master_port() if ranks > 1 else None,
            num_threads=max(1, len(group.devices) // ranks) if cpu_group else None,
            cpus=group.devices if cpu_group else (),
        )
        return cls(options, group.environment(), settings.engine_start_seconds)

    def start(self) -> Ready:
        """Start the engine and wait until its model is loaded; `EngineStartError` says why it can not be."""
        self._watcher.start()
        with self._changed:
            return self._await_ready()

    def submit(
        self, request_id: str, prompt_token_ids: Iterable[int], params: SamplingParams
    ) -> "Future[Finished]":
        """Ask for an answer. The future fails with `EngineDiedError` or `RequestRefusedError`."""
        message = Generate(request_id, tuple(prompt_token_ids), params)
        answer: Future[Finished] = Future()
        with self._changed:
            self._await_ready()
            self._pending[request_id] = answer
            self._requests += 1
            connection = self._connection
        self._send(connection, message)
        return answer

    def abort(self, request_ids: Iterable[str]) -> None:
        """Forget requests; their futures are cancelled."""
        with self._lock:
            known = [(each, self._pending.pop(each)) for each in request_ids if each in self._pending]
            connection = self._connection
        if known:
            self._send(connection, Abort(tuple(request_id for request_id, _ in known)))
        for _, answer in known:
            answer.cancel()

    @property
    def requests(self) -> int:
        """Requests sent to engines since the start."""
        return self._requests

    @property
    def pid(self) -> int | None:
        """The engine's process, None while there is none."""
        return self._process.pid if self._process else None

    def close(self) -> None:
        """End the engine; what is in flight fails."""
        with self._changed:
            self._ended.set()
            self._changed.notify_all()
        self._hang_up()
        if self._watcher.ident is not None:
            self._watcher.join(_END_SECONDS + 5)

    def _await_ready(self) -> Ready:
        """Wait until an engine can take requests. The lock is held on entry and on return."""
        self._changed.wait_for(
            lambda: self._ready or self._failure or self._ended.is_set(), self._start_seconds
        )
        if self._failure is not None:
            raise EngineStartError(f"{self._failure.message} ({self._failure.code})")
        if self._ended.is_set():
            raise EngineDiedError("the engine has ended")
        if self._ready is None:
            raise EngineStartError(
                f"the engine was not ready within {self._start_seconds:.0f} s: see its log, "
                "or raise LONGHAUL_ENGINE_START_SECONDS"
            )
        return self._ready

    def _send(self, connection: socket.socket | None, message: ToEngine) -> None:
        """Send, or leave it: an engine that is gone is the watcher's to notice, with all that is pending."""
        if connection is not None:
            with self._sending, contextlib.suppress(OSError):
                send(connection, message)

    def _hang_up(self) -> None:
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    # The watcher's thread: one engine after another, until closed or hopeless.

    def _watch(self) -> None:
        while not self._ended.is_set():
            ours, process = self._spawn()
            failure: Failed | None = None
            with ours.makefile("rb") as stream:
                while (event := receive_from_engine(stream)) is not None:
                    if isinstance(event, Failed):
                        failure = event
                    else:
                        self._handle(event)
            was_ready = self._lose(ours, process, failure)
            if self._ended.is_set():
                return
            if not was_ready:
                self.hopeless.set()
                return
            pause = _RESTART_SECONDS[min(self._starts - 1, len(_RESTART_SECONDS) - 1)]
            self._ended.wait(pause)

    def _spawn(self) -> tuple[socket.socket, subprocess.Popen[bytes]]:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(  # noqa: S603 - our own module
                [
                    sys.executable,
                    "-P",  # a folder called `model` where the user stands is not our package
                    "-m",
                    "worker.engine_main",
                    str(theirs.fileno()),
                    msgspec.json.encode(self._options).decode(),
                ],
                env={**os.environ, **self._environment},
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # a group of its own: the ranks end together
            )
        self._starts += 1
        self._process, self._connection = process, ours
        log.info("engine started", pid=process.pid, start=self._starts)
        return ours, process

    def _handle(self, event: FromEngine) -> None:
        match event:
            case Ready():
                log.info("engine ready", max_model_len=event.max_model_len, versions=event.versions)
                with self._changed:
                    self._ready = event
                    self._changed.notify_all()
            case Finished():
                self._settle(event.id, lambda answer: answer.set_result(event))
            case Refused():
                refusal = RequestRefusedError(event.code, event.message)
                self._settle(event.id, lambda answer: answer.set_exception(refusal))

    def _settle(self, request_id: str, settle: "Callable[[Future[Finished]], None]") -> None:
        with self._lock:
            answer = self._pending.pop(request_id, None)
        if answer is not None:
            settle(answer)

    def _lose(self, ours: socket.socket, process: subprocess.Popen[bytes], failure: Failed | None) -> bool:
        """Bury an engine whose connection ended; True if it had been ready: another may fare better."""
        status = _end(process)
        ours.close()
        what = _described(status, failure)
        with self._changed:
            was_ready = self._ready is not None
            self._ready, self._process, self._connection = None, None, None
            if not was_ready and not self._ended.is_set():
                self._failure = failure or Failed("engine_start", f"the engine {what} before it was ready")
            orphans, self._pending = self._pending, {}
            self._changed.notify_all()
        if not self._ended.is_set():
            log.error("engine lost", reason=what, in_flight=len(orphans))
        for answer in orphans.values():
            answer.set_exception(EngineDiedError(f"the engine {what}"))
        return was_ready


def _end(process: subprocess.Popen[bytes]) -> int:
    """Wait for an engine that is ending, then kill what is left of its group; its exit status."""
    try:
        status = process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        log.warning("engine does not end: killed", pid=process.pid)
        status = -signal.SIGKILL
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return status


def _described(status: int, failure: Failed | None) -> str:
    if failure is not None:
        return f"failed: {failure.message}"
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with status {status}"
