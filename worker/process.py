"""A group's worker process: Celery consumer, leases and maintenance around one engine.

Owns the start, the drain and the end of the process. It holds no device itself: those are the engine's.
Run by the supervisor as `python -m worker.process GROUP`; exit status 78 says that a restart would not help.
"""

import contextlib
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Literal

import structlog
from celery import Celery
from celery.worker import WorkController
from celery.worker import state as celery_state

from jobs.broker import celery_app, publish, queue_name
from jobs.call_offs import CallOffs
from jobs.dialogue import Sampling
from jobs.errors import JobsError, LedgerError, StoreError
from jobs.ledger import Ledger
from jobs.settings import Settings, load_settings
from jobs.storage import Store
from jobs.telemetry import set_up_logging
from model.chat import Chat
from model.errors import ModelError
from worker.echo_engine import EchoTemplate
from worker.engine_host import EngineHost
from worker.errors import WorkerError
from worker.generation import Model, Template
from worker.groups import DeviceGroup, parse_groups
from worker.hints import take_hints
from worker.identity import model_hash
from worker.leases import LeaseKeeper
from worker.maintenance import Maintenance
from worker.metrics import Metrics
from worker.pulse import Pulse
from worker.report import GroupReport, Reporter
from worker.sampling import model_sampling
from worker.station import Station
from worker.supervisor import EXIT_CONFIG

log = structlog.get_logger(__name__)

Standing = Literal["starting", "serving", "draining"]

#: Services that are away come back: the supervisor tries again.
_MAY_PASS = (LedgerError, StoreError)
_REPORT_SECONDS = 1.0
#: What a process whose consumer stands still gets for handing back and ending its engine.
_STUCK_SECONDS = 10.0


def main(index: int) -> int:
    """Serve the device group of this index until told to stop."""
    try:
        settings = load_settings()
        group = parse_groups(settings.device_groups)[index]
        set_up_logging(settings, group=str(group))
        return _serve(settings, group)
    except (JobsError, ModelError, WorkerError) as error:
        log.error("worker can not start", code=error.code, reason=str(error))
        return 1 if isinstance(error, _MAY_PASS) else EXIT_CONFIG


def _serve(settings: Settings, group: DeviceGroup) -> int:
    ledger, store, app = Ledger.open(settings), Store.open(settings), celery_app(settings)
    ledger.ping()
    store.probe()
    reporter = Reporter.open()
    reporter.send(_report(group, "starting"))
    name, path = _served(settings, group)
    metrics, pulse = Metrics(model=name, group=str(group)), Pulse()
    with _exported(metrics, settings, group):
        model = _started_model(name, path, group, settings, metrics)

        def dispatch() -> None:
            try:
                publish(app, model.name, ledger.dispatch(model.name, settings.backlog))
            except LedgerError as error:
                log.warning("shards not published: the reconciler will", reason=str(error))

        station = Station(
            worker=f"{socket.gethostname()}-{os.getpid()}-{group}",
            group=group,
            settings=settings,
            store=store,
            ledger=ledger,
            leases=LeaseKeeper(ledger, settings.lease_seconds),
            model=model,
            metrics=metrics,
            dispatch=dispatch,
        )
        metrics.watch_consumer(lambda: pulse.age)
        metrics.watch_engine(lambda: model.engine.idle_seconds)
        return _run(app, station, pulse, reporter)


def _run(app: Celery, station: Station, pulse: Pulse, reporter: Reporter) -> int:
    engine = station.model.engine
    _Drain(station)
    maintenance = Maintenance(station, app, pulse, partial(_replace, station))
    call_offs = CallOffs(station.settings, station.leases.renew_now)
    station.leases.start()
    call_offs.start()
    maintenance.start()
    threading.Thread(target=_keep_reporting, args=(station, reporter), name="reports", daemon=True).start()
    log.info("worker ready", worker=station.worker, model=station.model.name)
    try:
        _consume(app, station, pulse)
    finally:
        maintenance.close()
        call_offs.close()
        station.leases.close()
        engine.close()
        _close(station.ledger)
        log.info("worker ended", worker=station.worker)
    if engine.hopeless.is_set():
        log.error("engine does not start again: the supervisor tries with a new process")
        return 1
    return 0


def _close(ledger: Ledger) -> None:
    try:
        ledger.close()
    except LedgerError as error:
        log.warning("connection to Redis not closed: it ends with the process", reason=str(error))


def _served(settings: Settings, group: DeviceGroup) -> tuple[str, Path]:
    """The name that jobs ask for, and the checkpoint's folder, which an echo engine needs not."""
    if group.kind == "echo":
        return settings.served_name or "echo", settings.model or Path()
    path, name = settings.served_model()
    return name, path


def _started_model(name: str, path: Path, group: DeviceGroup, settings: Settings, metrics: Metrics) -> Model:
    # What is wrong with the small files shows before the weights load.
    template: Template
    if group.kind == "echo":
        template, defaults, identity = EchoTemplate(), Sampling(), "echo"
    else:
        template, defaults, identity = Chat.load(path), model_sampling(path), model_hash(path)
    engine = EngineHost.open(group, path, settings, metrics)
    try:
        ready = engine.start()
    except WorkerError:
        engine.close()
        raise
    return Model(
        name=name,
        engine=engine,
        chat=template,
        max_model_len=ready.max_model_len,
        defaults=defaults,
        versions=ready.versions,
        hash=identity,
    )


@contextlib.contextmanager
def _exported(metrics: Metrics, settings: Settings, group: DeviceGroup) -> Iterator[None]:
    if not settings.metrics_port:
        yield
        return
    server = metrics.serve(settings.metrics_host, settings.metrics_port + group.index)
    log.info("metrics served", host=settings.metrics_host, port=server.port)
    try:
        yield
    finally:
        server.close()


def _consume(app: Celery, station: Station, pulse: Pulse) -> None:
    """Take hints from the model's queue until the process is told to stop and its shards are done or back."""
    take_hints(app, station)
    pulse.install(app)
    controller = WorkController(
        app=app,
        pool="threads",
        concurrency=station.settings.shards_in_flight,
        queues=[queue_name(station.model.name)],
        hostname=station.worker,
        without_gossip=True,
        without_mingle=True,
        loglevel=station.settings.log_level.upper(),
    )
    threading.Thread(target=_stop_when_hopeless, args=(station,), daemon=True).start()
    threading.Thread(target=_drain_when_orphaned, daemon=True).start()
    controller.start()
    station.hand_back.set()


class _Drain:
    """First SIGTERM or SIGINT: claim no more, finish within the grace, hand back. Second: hand back now."""

    def __init__(self, station: Station) -> None:
        self._station = station
        self._reading, self._writing = os.pipe()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)
        threading.Thread(target=self._run, name="drain", daemon=True).start()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        """The signal handler: it may interrupt anything, itself too, so it takes no lock and does not log."""
        del number, frame
        celery_state.should_stop = os.EX_OK
        os.write(self._writing, b".")

    def _run(self) -> None:
        os.read(self._reading, 1)
        grace = self._station.settings.drain_seconds
        log.info("draining", grace=grace)
        select.select([self._reading], [], [], grace)
        self._station.hand_back.set()


def _stop_when_hopeless(station: Station) -> None:
    station.model.engine.hopeless.wait()
    station.hand_back.set()
    celery_state.should_stop = os.EX_OK


def _replace(station: Station) -> None:
    """The consumer hears no signal any more: hand back, end the engine, leave the rest to the supervisor."""
    station.hand_back.set()

    def leave() -> None:
        station.model.engine.close()
        os._exit(1)

    threading.Timer(_STUCK_SECONDS, leave).start()


def _keep_reporting(station: Station, reporter: Reporter) -> None:
    """Tell the supervisor how the group stands, once a second, for as long as the process lives."""
    while True:
        draining = celery_state.should_stop is not None or station.hand_back.is_set()
        reporter.send(_report(station.group, "draining" if draining else "serving", station))
        time.sleep(_REPORT_SECONDS)


def _report(group: DeviceGroup, state: Standing, station: Station | None = None) -> GroupReport:
    return GroupReport(
        group=str(group),
        state=state,
        shards=station.leases.held if station else 0,
        lines=station.odometer.lines if station else 0,
        tokens=station.odometer.tokens if station else 0,
        engine_starts=station.model.engine.starts if station else 0,
    )


def _drain_when_orphaned() -> None:
    """Standard input is the supervisor's pipe: it ends when the supervisor does, however that dies."""
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
