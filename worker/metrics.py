"""What a worker tells Prometheus: lines, tokens, shards, retries, its engine's state, its fleet's backlog.

Owns the names of the series and the port where they are read. Labels are the model, the device group, and
words from lists that stand here: never an id of a job or line, a name of a machine, or a text.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

from jobs import dialogue
from worker.errors import MetricsPortError

Service = Literal["store", "ledger"]
#: How a claim of a shard can end.
Ending = Literal["committed", "handed_back", "lost", "failed"]
F = TypeVar("F", bound=MetricWrapperBase)

SUCCEEDED = "succeeded"
#: What becomes of a line: an answer, or one of the codes of its errors.
OUTCOMES = (
    SUCCEEDED,
    dialogue.INVALID_JSON,
    dialogue.INVALID_REQUEST,
    dialogue.LINE_TOO_LARGE,
    dialogue.DUPLICATE_CUSTOM_ID,
    dialogue.CONTEXT_LENGTH_EXCEEDED,
    dialogue.ENGINE_ERROR,
    dialogue.DEADLINE_EXCEEDED,
    dialogue.CANCELLED,
)
#: Why an engine went: a signal, its own exit, no step for too long, a rank's failure, a start that failed.
LOSS_REASONS = ("killed", "exited", "hung", "engine_error", "engine_start")
#: Stands for a word that is not in the list, so that a label can not hold what it should not.
OTHER = "other"

_OWN = ("model", "group")
#: From a shard that a worker was waiting for, to one that waited for a day.
_QUEUE_WAIT_SECONDS = (0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200, 86400)
_SHARD_SECONDS = (1, 2, 5, 10, 20, 30, 60, 120, 180, 300, 600, 1200, 1800, 3600, 7200)
#: A backlog that was told longer ago is not exported: whoever takes the fleet's maximum would be misled.
_FRESH_SECONDS = 120.0
_RATE_SECONDS = 10


class Metrics:
    """The series of one worker process, in a registry of their own. Safe to use from many threads.

    What counts events begins at zero for every word it may carry: Prometheus sees a rise only from a number.
    """

    def __init__(self, *, model: str, group: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.registry = CollectorRegistry()
        self._own = (model, group)
        made = _Series(self.registry, self._own)
        done = "Lines that got their outcome."
        self._lines = made.each(Counter, "lines", done, "outcome", (*OUTCOMES, OTHER))
        self._prompt_tokens = made.one(Counter, "prompt_tokens", "Tokens in the prompts of finished lines.")
        self._cached_tokens = made.one(Counter, "cached_tokens", "Prompt tokens found in the prefix cache.")
        self._generated_tokens = made.one(Counter, "generated_tokens", "Tokens generated for finished lines.")
        self._throughput = _Throughput(clock)
        recent = "Tokens per second generated for the lines that finished in the last ten seconds."
        made.one(Gauge, "generated_tokens_per_second", recent).set_function(self._throughput.per_second)

        wait = "From when a shard became due to its claim."
        self._queue_wait = made.one(Histogram, "queue_wait_seconds", wait, buckets=_QUEUE_WAIT_SECONDS)
        self._shard_retries = made.one(Counter, "shard_retries", "Claims of shards that were begun before.")
        took = "From a shard's claim to its end here."
        ends = get_args(Ending)
        self._shard_seconds = made.each(Histogram, "shard_seconds", took, "how", ends, buckets=_SHARD_SECONDS)
        self._leases = made.one(Gauge, "leases_held", "Shards that the worker holds.")
        waits = "Times that a service did not answer and was asked again."
        self._service_retries = made.each(Counter, "service_retries", waits, "service", get_args(Service))

        self._engine_starts = made.one(Counter, "engine_starts", "Engine processes started.")
        lost = "Engine processes that ended unasked."
        self._engine_losses = made.each(Counter, "engine_losses", lost, "reason", (*LOSS_REASONS, OTHER))
        held = "Requests in the engine."
        self._requests = made.each(Gauge, "engine_requests", held, "state", ("running", "waiting"))
        self._kv_used = made.one(Gauge, "kv_cache_used_ratio", "Share of the KV cache's blocks in use.")
        memory = "Memory in use on the group's devices."
        self._device_memory = made.family(Gauge, "device_memory_bytes", memory)
        spent = "Engine time, times the devices of the group."
        self._device_seconds = made.each(Counter, "device_seconds", spent, "use", ("useful", "wasted"))

        begun = "When the worker process began, Unix time."
        made.one(Gauge, "worker_start_time_seconds", begun).set_to_current_time()
        moved = "Since the queue's consumer last moved."
        self._consumer_age = made.family(Gauge, "worker_consumer_age_seconds", moved)
        self._step_age = made.family(Gauge, "engine_step_age_seconds", "Since the engine's last step.")
        self._backlogs = _Backlogs(group, clock)
        self.registry.register(self._backlogs)

    # Lines

    def lines_done(
        self,
        outcomes: Mapping[str, int],
        *,
        prompt_tokens: int = 0,
        cached_tokens: int = 0,
        completion_tokens: int = 0,
    ) -> None:
        """Lines got their outcomes: how many of each, and the tokens of all together."""
        for outcome, count in outcomes.items():
            self._lines.get(outcome, self._lines[OTHER]).inc(count)
        self._prompt_tokens.inc(prompt_tokens)
        self._cached_tokens.inc(cached_tokens)
        self._generated_tokens.inc(completion_tokens)
        self._throughput.add(completion_tokens)

    # Shards

    def shard_claimed(self, queue_wait_seconds: float, attempt: int) -> None:
        """A shard was claimed, so long after it became due; `attempt` is 1 where it is the first."""
        self._queue_wait.observe(queue_wait_seconds)
        if attempt > 1:
            self._shard_retries.inc()

    def shard_ended(self, how: Ending, seconds: float) -> None:
        """A claimed shard is no longer ours, so long after its claim."""
        self._shard_seconds[how].observe(seconds)

    def leases_held(self, count: int) -> None:
        """The worker holds so many shards now."""
        self._leases.set(count)

    def service_retried(self, service: Service) -> None:
        """A service did not answer and is asked again."""
        self._service_retries[service].inc()

    def backlog(self, model: str, *, jobs: int, lines: int) -> None:
        """The ledger has so many jobs of a model that have not ended, and so many lines of theirs to do."""
        self._backlogs.told(model, jobs, lines)

    # The engine

    def engine_started(self) -> None:
        """An engine process was started."""
        self._engine_starts.inc()

    def engine_lost(self, reason: str) -> None:
        """An engine process ended unasked, for one of `LOSS_REASONS`; what it held is gone with it."""
        self._engine_losses.get(reason, self._engine_losses[OTHER]).inc()
        self.engine_state(running=0, waiting=0, kv_blocks_used=0, kv_blocks_total=0, device_memory_bytes=None)

    def engine_state(
        self,
        *,
        running: int,
        waiting: int,
        kv_blocks_used: int,
        kv_blocks_total: int,
        device_memory_bytes: int | None,
    ) -> None:
        """The engine's state now; memory is that of all devices of the group, None where it is not known."""
        self._requests["running"].set(running)
        self._requests["waiting"].set(waiting)
        self._kv_used.set(kv_blocks_used / kv_blocks_total if kv_blocks_total else 0)
        if device_memory_bytes is None:
            self._device_memory.clear()
        else:
            self._device_memory.labels(*self._own).set(device_memory_bytes)

    def device_seconds(self, useful: float) -> None:
        """Device time went into lines that are kept."""
        self._device_seconds["useful"].inc(useful)

    def wasted(self, device_seconds: float) -> None:
        """Device time went into work that was lost before its line was kept."""
        self._device_seconds["wasted"].inc(device_seconds)

    # Signs of life

    def watch_consumer(self, age: Callable[[], float]) -> None:
        """Export the seconds since the queue's consumer last moved; asked at each scrape."""
        self._consumer_age.labels(*self._own).set_function(age)

    def watch_engine(self, age: Callable[[], float]) -> None:
        """Export the seconds since the engine's last step; asked at each scrape."""
        self._step_age.labels(*self._own).set_function(age)

    def serve(self, host: str, port: int) -> "MetricsServer":
        """Let Prometheus read the series at this port until closed; `MetricsPortError` if it can not."""
        try:
            server, thread = start_http_server(port, addr=host, registry=self.registry)
        except (OSError, OverflowError) as error:
            raise MetricsPortError(
                f"metrics can not be served at {host}:{port} ({error}): set LONGHAUL_METRICS_HOST to an "
                "address of this machine, and LONGHAUL_METRICS_PORT to a free port with free ones after it "
                "for further device groups, or to 0"
            ) from error
        return MetricsServer(server, thread)


@dataclass(frozen=True, slots=True)
class MetricsServer:
    """The series of a worker at a port."""

    _server: WSGIServer
    _thread: threading.Thread

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._server.server_port

    def close(self) -> None:
        """Serve no more; the port is free afterwards."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Series:
    """Makes the series of one model and group."""

    def __init__(self, registry: CollectorRegistry, own: tuple[str, str]) -> None:
        self._registry = registry
        self._own = own

    def one(self, kind: type[F], name: str, text: str, **options: Any) -> F:
        """One series, there from now on."""
        return self.family(kind, name, text, **options).labels(*self._own)

    def each(
        self, kind: type[F], name: str, text: str, label: str, words: Iterable[str], **options: Any
    ) -> dict[str, F]:
        """A series for each word of a label, there from now on."""
        family = self.family(kind, name, text, label, **options)
        return {word: family.labels(*self._own, word) for word in words}

    def family(self, kind: type[F], name: str, text: str, *labels: str, **options: Any) -> F:
        """What makes series: without more labels, one when asked for."""
        return kind(name, text, (*_OWN, *labels), namespace="longhaul", registry=self._registry, **options)


class _Throughput:
    """Tokens per second over the last ten whole seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        #: Tokens by the second in which they came, oldest first.
        self._counts: dict[int, int] = {}

    def add(self, tokens: int) -> None:
        """Count tokens that came just now."""
        with self._lock:
            now = self._forget()
            self._counts[now] = self._counts.get(now, 0) + tokens

    def per_second(self) -> float:
        """The mean; the second that is not over yet does not count."""
        with self._lock:
            now = self._forget()
            return sum(tokens for second, tokens in self._counts.items() if second < now) / _RATE_SECONDS

    def _forget(self) -> int:
        now = int(self._clock())
        while self._counts and (oldest := next(iter(self._counts))) < now - _RATE_SECONDS:
            del self._counts[oldest]
        return now


class _Backlogs(Collector):
    """What is left to do in the fleet, by model, as long as the news are fresh."""

    def __init__(self, group: str, clock: Callable[[], float]) -> None:
        self._group = group
        self._clock = clock
        self._lock = threading.Lock()
        #: By model: when it was told, jobs, lines.
        self._told: dict[str, tuple[float, int, int]] = {}

    def told(self, model: str, jobs: int, lines: int) -> None:
        """The latest news of a model."""
        with self._lock:
            self._told[model] = (self._clock(), jobs, lines)

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """What Prometheus reads."""
        jobs, lines = self.describe()
        oldest = self._clock() - _FRESH_SECONDS
        with self._lock:
            self._told = {model: told for model, told in self._told.items() if told[0] >= oldest}
            for model, (_, job_count, line_count) in self._told.items():
                jobs.add_metric((model, self._group), job_count)
                lines.add_metric((model, self._group), line_count)
        return jobs, lines

    def describe(self) -> tuple[GaugeMetricFamily, GaugeMetricFamily]:
        """The names, without values."""
        return (
            GaugeMetricFamily("longhaul_active_jobs", "Jobs of the model that have not ended.", labels=_OWN),
            GaugeMetricFamily(
                "longhaul_remaining_lines", "Lines of these jobs that are in no committed part.", labels=_OWN
            ),
        )
