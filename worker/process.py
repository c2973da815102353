"""A group's worker process: Celery consumer, leases and maintenance around one engine.

Owns the start, the drain and the end of the process. It holds no device itself: those are the engine's.
Run by the supervisor as `python -m worker.process GROUP`; exit status 78 says that a restart would not help.
"""

import os
import signal
import socket
import sys
import threading
from types import FrameType

import structlog
from celery import Celery
from celery.worker import WorkController
from celery.worker import state as celery_state

from jobs.broker import TASK, celery_app, publish, queue_name
from jobs.errors import JobsError, LedgerError, StoreError
from jobs.ledger import Ledger
from jobs.records import ShardRef
from jobs.settings import Settings, load_settings
from jobs.storage import Store
from jobs.telemetry import set_up_logging
from model.chat import Chat
from model.errors import ModelError
from worker.engine_host import EngineHost
from worker.errors import WorkerError
from worker.generation import Model
from worker.groups import DeviceGroup, parse_groups
from worker.leases import LeaseKeeper
from worker.maintenance import Maintenance
from worker.sampling import model_sampling
from worker.shard import Station, work
from worker.supervisor import EXIT_CONFIG

log = structlog.get_logger(__name__)

#: Services that are away come back: the supervisor tries again.
_MAY_PASS = (LedgerError, StoreError)


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
    model = _started_model(settings, group)

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
        dispatch=dispatch,
        hand_back=threading.Event(),
    )
    maintenance = Maintenance(station, app)
    station.leases.start()
    maintenance.start()
    log.info("worker ready", worker=station.worker, model=model.name)
    try:
        _consume(app, station)
    finally:
        maintenance.close()
        station.leases.close()
        model.engine.close()
        ledger.close()
        log.info("worker ended", worker=station.worker)
    if model.engine.hopeless.is_set():
        log.error("engine does not start again: the supervisor tries with a new process")
        return 1
    return 0


def _started_model(settings: Settings, group: DeviceGroup) -> Model:
    path, name = settings.served_model()
    chat, defaults = (
        Chat.load(path),
        model_sampling(path),
    )  # what is wrong with these shows before the weights load
    engine = EngineHost.open(group, path, settings)
    ready = engine.start()
    return Model(
        name=name,
        engine=engine,
        chat=chat,
        max_model_len=ready.max_model_len,
        defaults=defaults,
        versions=ready.versions,
    )


def _consume(app: Celery, station: Station) -> None:
    """Take hints from the model's queue until the process is told to stop and its shards are done or back."""

    @app.task(name=TASK)  # type: ignore[untyped-decorator]
    def shard(job: str, shard: int) -> None:
        work(station, ShardRef(job, shard))

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
    _drain_on_signals(station)
    threading.Thread(target=_stop_when_hopeless, args=(station,), daemon=True).start()
    threading.Thread(target=_drain_when_orphaned, daemon=True).start()
    controller.start()
    station.hand_back.set()


def _drain_on_signals(station: Station) -> None:
    """First SIGTERM or SIGINT: claim no more, finish within the grace, hand back. Second: hand back now."""

    def drain(number: int, frame: FrameType | None) -> None:
        del frame
        if celery_state.should_stop is not None:
            station.hand_back.set()
            return
        log.info("draining", signal=signal.Signals(number).name, grace=station.settings.drain_seconds)
        celery_state.should_stop = os.EX_OK
        timer = threading.Timer(station.settings.drain_seconds, station.hand_back.set)
        timer.daemon = True
        timer.start()

    signal.signal(signal.SIGTERM, drain)
    signal.signal(signal.SIGINT, drain)


def _stop_when_hopeless(station: Station) -> None:
    station.model.engine.hopeless.wait()
    station.hand_back.set()
    celery_state.should_stop = os.EX_OK


def _drain_when_orphaned() -> None:
    """Standard input is the supervisor's pipe: it ends when the supervisor does, however that dies."""
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
