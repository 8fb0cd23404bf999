"""One worker process: load every model, give back what a killed predecessor held, then take work.

Order matters. Models are loaded and warm before the first message is taken, so no job waits behind a load. One
process owns the GPU and never forks after touching it (threads pool): CUDA cannot be initialised again in a child.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog
from celery import Celery, signals
from celery.worker import state as celery_state
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from shared import messages
from shared.errors import FatalError, OutputNotWritten, StoreUnavailable
from shared.logs import configure_logging
from shared.settings import Settings
from shared.storage import FolderStorage
from shared.store import Store
from shared.store.connection import unavailable
from worker.affinity import share_a_core
from worker.cells import LoadedEngine
from worker.consumer import TolerantConsumer
from worker.crashes import CrashGuard
from worker.device import DeviceQueue, batch_limits
from worker.engine import Engine, configure_torch, pick_device
from worker.heartbeat import Heartbeat
from worker.held import give_back, held_options
from worker.memory import MemoryTrimmer, memory_report
from worker.nets.fast import own
from worker.pipeline import Pipeline
from worker.registry import resolve_models
from worker.rescuer import Rescuer
from worker.sweeper import Sweeper
from worker.tasks import register_tasks
from worker.webhooks import WebhookClock, WebhookSender, register_webhook_task

log = structlog.get_logger(__name__)

#: How long a starting worker waits for Redis (s).
_REDIS_PATIENCE_S = 30.0
#: How long a worker whose device has failed may record that for its cells (s), before it ends.
_FAILED_GRACE_S = 10.0


def load_engines(settings: Settings, heartbeat: Heartbeat) -> dict[str, LoadedEngine]:
    """Load and warm every model.

    Raises:
        FatalError: files missing or not fitting, or no such device.
    """
    specs = resolve_models(settings)
    configure_torch(settings)
    device = pick_device(settings)
    heartbeat.update(device=str(device))
    engines: dict[str, LoadedEngine] = {}
    with ThreadPoolExecutor(1, thread_name_prefix="kernels") as threads:
        tried = own.try_beside(device, threads)
        for spec in specs:
            started = time.perf_counter()
            engine = Engine(
                spec,
                device,
                use_fp16=settings.use_fp16,
                compile_mode=settings.compile,
                compiled_dir=settings.models_dir / ".compiled",
            )
            tried.result()  # before the first pass asks for them
            loaded = time.perf_counter()
            warm_up_s = engine.warm_up()
            engines[spec.name] = engine
            state = {
                "device": str(device),
                "dtype": str(engine.dtype).removeprefix("torch."),
                "profile": spec.profile,
                "licence": spec.licence,
            }
            heartbeat.model(spec.name, status="ready", **state)
            log.info(
                "model_loaded",
                model=spec.name,
                **state,
                path=str(spec.path),
                load_s=round(loaded - started, 3),
                warm_up_s=round(warm_up_s, 3),
            )
    return engines


def make_worker_app(settings: Settings) -> Celery:
    """The shared Celery configuration plus what only a consumer needs."""
    app = messages.make_celery(settings, "worker")
    # The stock backend's subscriptions leak (worker/backend.py).
    url = settings.redis_url.get_secret_value()
    app.conf.result_backend = f"worker.backend:QuietRedisBackend+{url}"
    # Each thread may have one connection that the client keeps and one more for a transaction. kombu's own limit is 10,
    # and with that, more threads than nine could end in messages that are never given back.
    connections = 2 * settings.worker_threads + 8
    app.conf.redis_max_connections = connections
    app.conf.broker_transport_options = {
        **app.conf.broker_transport_options,
        **held_options(settings.worker_name),
        "max_connections": connections,
    }
    # By name: `inspect stats`, which Flower asks for, sends it as JSON.
    app.conf.broker_transport = "worker.consumer:TolerantTransport"
    app.conf.worker_consumer = TolerantConsumer
    # Task events are sent from when somebody asks for them, as Flower does every five seconds; what they cost is in
    # docs/performance.md.
    app.conf.worker_hijack_root_logger = False
    app.conf.worker_cancel_long_running_tasks_on_connection_loss = False
    return app


def check_outputs_folder(storage: FolderStorage) -> None:
    """Write a file where results go and remove it: better to stop now than to fail every job.

    Raises:
        FatalError: it cannot be written.
    """
    probe = "worker-start"
    try:
        storage.write_work(probe, "probe", b"")
        storage.remove_work(probe)
    except OutputNotWritten as exc:
        raise FatalError(f"OUTPUTS_DIR={storage.outputs_dir} cannot be written: {exc.message}") from exc


def wait_for_redis(store: Store, patience_s: float = _REDIS_PATIENCE_S) -> None:
    """Return when Redis answers: a worker that starts beside a restarting Redis shall not load its models in vain.

    Raises:
        FatalError: it does not answer in time.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            store.ping()
            return
        except StoreUnavailable as exc:
            if time.monotonic() > deadline:
                raise FatalError(f"{exc.message} (waited {patience_s:.0f} s)") from exc
            time.sleep(0.5)


def run_worker(
    settings: Settings,
    load: Callable[[Settings, Heartbeat], Mapping[str, LoadedEngine]] = load_engines,
) -> int:
    """Run a worker until it is told to stop (TERM: finish what runs, take nothing new).

    Args:
        load: makes the engines; tests pass their own.
    Returns:
        The process's exit status.
    Raises:
        FatalError: it cannot start; the message is for the operator.
    """
    configure_logging(settings)
    # Connected or not, Celery installs its own logging unless this signal has a receiver.
    signals.setup_logging.connect(_keep_logging, weak=False)
    log.info("worker_starting", name=settings.worker_name)  # what came before is Python and its imports
    store = Store.from_settings(settings)
    storage = FolderStorage(settings.outputs_dir, settings.base_url)
    check_outputs_folder(storage)
    wait_for_redis(store)
    with Heartbeat(store, settings) as heartbeat, Sweeper(settings, store, storage), MemoryTrimmer():
        engines = load(settings, heartbeat)
        log.info("All models initialized successfully", models=sorted(engines))
        device = next(iter(engines.values())).device
        queue = DeviceQueue(
            engines, batch_limits(settings, device.type), on_death=lambda why: _stop_failed(heartbeat, why)
        )
        heartbeat.watch(lambda: {"memory": memory_report(device), "device_waiting": queue.waiting})
        app = make_worker_app(settings)
        guard = CrashGuard(store, settings.worker_name, settings.max_deliveries)
        register_tasks(app, Pipeline(settings, store, storage, engines, queue), guard)
        register_webhook_task(app, WebhookSender(settings, store))
        try:
            give_back(app, store, settings.worker_name)
        except (OperationalError, RedisError, StoreUnavailable) as exc:
            why = exc if isinstance(exc, StoreUnavailable) else unavailable(exc)
            raise FatalError(f"{why.message} (after the models were loaded; start the worker again)") from exc

        def is_ready(**_: Any) -> None:
            heartbeat.update(status="ready")

        def is_stopping(**_: Any) -> None:
            heartbeat.update(status="draining")
            # Celery waits for running tasks without limit. What is cut off here is given back at the next start.
            _give_up_after(settings.shutdown_grace_s, lambda: store.under_way.forget(settings.worker_name))

        signals.worker_ready.connect(is_ready, weak=False)
        signals.worker_shutting_down.connect(is_stopping, weak=False)
        worker = app.Worker(
            pool="threads",
            concurrency=settings.worker_threads,
            hostname=f"{settings.worker_name}@cutout",
            queues=[messages.WEBHOOK_QUEUE, messages.CELL_QUEUE, messages.QUEUE],  # in this order: see there
            loglevel=settings.log_level,
            quiet=True,  # no banner between the JSON lines
            without_gossip=True,
            without_mingle=True,
        )
        # The queue is drained after Celery has waited for its tasks.
        with queue, WebhookClock(app, store.deliveries), Rescuer(settings, store, app):
            # The device's thread is free already; those that work on jobs are started by this one, and stay with it.
            share_a_core(settings.worker_core)
            worker.start()
        return int(worker.exitcode or 0)


def _stop_failed(heartbeat: Heartbeat, reason: str) -> None:
    """End a worker whose device has failed: nothing new is taken, and what waited records its error.

    Its supervisor starts another process; only a new one can use a CUDA device again.
    """
    heartbeat.fail(reason)
    celery_state.should_stop = 1
    _give_up_after(_FAILED_GRACE_S)


def _give_up_after(grace_s: float, last: Callable[[], None] = lambda: None) -> None:
    """End the process by force, after a `last` act, unless it has ended by itself within `grace_s`."""
    limit = threading.Timer(grace_s, _give_up, (grace_s, last))
    limit.daemon = True
    limit.start()


def _give_up(grace_s: float, last: Callable[[], None]) -> None:
    log.warning("shutdown_grace_over", grace_s=grace_s)
    with contextlib.suppress(StoreUnavailable):  # then its jobs are suspected of a crash, once
        last()
    os._exit(1)


def _keep_logging(**_: Any) -> None:
    """Leave the logging of shared/logs.py in place."""
