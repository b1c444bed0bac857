"""Composes everything: start, run, drain, stop."""

import asyncio
import contextlib
import os
import random
import secrets
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from services.executor.artifacts import Keeper, open_blobs
from services.executor.config import Mode, Settings
from services.executor.intake import Intake
from services.executor.isolation.calls import Level
from services.executor.isolation.environment.environments import Environments
from services.executor.isolation.pool import Pool
from services.executor.isolation.sandbox import Sandbox, unprotected
from services.executor.loader import Loader
from services.executor.monitoring import tracing
from services.executor.policy import Defaults, allowed_environment, retry_backoff
from services.executor.recovery import Cancellations, Recovery
from services.executor.report import Observer
from services.executor.runner import Runner
from services.executor.store import Retention, Store, StoreOptions
from services.executor.tools.bundles import Bundles
from services.executor.tools.readiness import PREPARED_AT_ONCE, Readiness
from services.executor.tools.registry import Registry, fingerprint_of
from services.executor.triggers import Triggers
from shared.backoff import until_available
from shared.connection import connect, connect_blocking, naming_database, without_password

if TYPE_CHECKING:
    from services.executor.monitoring.prometheus import Monitor

# What only some modes and settings need is imported where they ask for it: a worker starts in a
# fraction of the time and memory without Prometheus' client, an HTTP server and what reads cron.

log = structlog.get_logger()

PRUNE_SECONDS = 3_600.0
TIDY_SECONDS = 5.0
SETTLE_SECONDS = 0.2
"""So much later begins what no run waits for: it would take the processors from runs that wait."""


class Service:
    """One worker: claims runs, performs them, and takes its part in what all workers do together.

    Args:
        settings: what the operator chose.
        url: the Redis server, already running if it is the embedded one.
        variables: the environment that tools may be given parts of.
    """

    def __init__(self, settings: Settings, url: str, variables: Mapping[str, str]) -> None:
        self._settings = settings
        self._url = url
        self._client = connect(url)
        self._patient = connect_blocking(url)
        self.worker = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
        # The registry and those who prepare tools describe some while all slots are taken.
        capacity = settings.concurrency + 1 + PREPARED_AT_ONCE
        self._pool = Pool(
            capacity=capacity,
            room=max(settings.warm_processes, capacity),
            environ=allowed_environment(variables),
            readable=settings.sandbox_readable,
        )
        self._environments = Environments(
            settings.environments_path,
            uv=_uv(),
            environ=variables,
            config_file=settings.uv_config_file,
            readable=settings.sandbox_readable,
        )
        blobs = open_blobs(settings.artifacts)
        self._bundles = Bundles(blobs, settings.bundles_path)
        self._loader = Loader(
            settings.tools_path,
            self._pool,
            self._environments,
            self._bundles,
            settings.sandbox,
            settings.tool_capabilities_allowed,
            builds_allowed=settings.tool_builds_allowed,
        )
        self._monitor = self._wanted_monitor(variables)
        observer = self._monitor or Observer()
        self._observer = observer
        self._store = Store.on(
            self._client,
            self._patient,
            retention(settings),
            observer.unavailable,
            store_options(settings),
        )
        self._readiness = Readiness(
            self._store, self._loader, self.worker, settings.heartbeat_ttl, settings.tool_execution_timeout
        )
        walls = [settings.sandbox, *settings.sandbox_readable, *settings.tool_capabilities_allowed]
        self._registry = Registry(
            self._store,
            self.worker,
            self._loader,
            lambda: fingerprint_of(walls),
            settings.cron_check_interval,
        )
        keeper = Keeper(blobs, settings.inline_artifact_max_bytes)
        runner = Runner(
            self._store,
            self._loader,
            self._readiness,
            self._pool,
            keeper,
            defaults(settings, variables),
            random.random,
            observer,
        )
        self._intake = Intake(
            self._store.queue, self.worker, settings.concurrency, self._readiness, runner.run
        )
        self._triggers = self._listener()
        self._recovery = Recovery(
            self._store,
            self.worker,
            settings.heartbeat_ttl,
            self._intake,
            self._triggers,
            observer,
            keeper,
        )

    @property
    def is_listening(self) -> bool:
        """Whether triggers are received; True if the modes include no triggers."""
        return self._triggers is None or self._triggers.listening.is_set()

    @property
    def running(self) -> int:
        """The number of runs that this worker has claimed and that have not ended."""
        return len(self._intake.running)

    def processes(self) -> dict[str, int]:
        """The number of tool processes that are `busy`, `starting` and `idle`."""
        return self._pool.counts()

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; then finish what runs, or give it back after the grace period."""
        with naming_database(self._client):
            await self._run(stop)

    async def _run(self, stop: asyncio.Event) -> None:
        async with self._connections(), self._observed(stop):
            if not await _unless(stop, until_available("start", self._store.due_times.now_ms)):
                log.info("service.not_started", worker=self.worker)
                return
            async with self._processes():
                await self._live(stop)
            await self._recovery.leave()
        log.info("service.stopped", worker=self.worker)

    async def _live(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, then drain; after a fault of ours, runs are given back at once."""
        grace_seconds = 0.0
        await self._readiness.start()
        await until_available("heartbeat", self._recovery.register)
        async with asyncio.TaskGroup() as tasks:
            beating = tasks.create_task(self._recovery.beat(), name="heartbeat")
            watching = tasks.create_task(self._recovery.watch(), name="unwanted")
            try:
                await self._work_until(stop)
                grace_seconds = self._settings.shutdown_grace
            finally:
                await self._intake.drain(grace_seconds)
            beating.cancel()
            watching.cancel()

    async def _work_until(self, stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as tasks:
            working = tasks.create_task(self._work(), name="work")
            await stop.wait()
            log.info("service.stopping", running=len(self._intake.running))
            if self._triggers is not None:
                await self._triggers.leave()
            working.cancel()

    @contextlib.asynccontextmanager
    async def _connections(self) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await self._client.aclose()
            await self._patient.aclose()

    @contextlib.asynccontextmanager
    async def _observed(self, stop: asyncio.Event) -> AsyncIterator[None]:
        """Answer who watches, from before Redis is there until the last run is reported."""
        monitor, settings = self._monitor, self._settings
        async with contextlib.AsyncExitStack() as opened:
            if monitor is not None:
                opened.push_async_callback(monitor.close)
            if monitor is not None and settings.health_port:
                from services.executor.monitoring.health_server import Answers, Worker, serving

                listening = self._triggers.listening if self._triggers else None
                worker = Worker(
                    self.worker,
                    self._store,
                    self._intake,
                    settings.concurrency,
                    listening,
                    stop,
                    self._pool.counts,
                )
                answers = Answers(worker, monitor.registry)
                await opened.enter_async_context(serving(settings.health_host, settings.health_port, answers))
            yield

    @contextlib.asynccontextmanager
    async def _processes(self) -> AsyncIterator[None]:
        settings = self._settings
        await self._pool.start()
        log.info(
            "service.started",
            worker=self.worker,
            modes=[mode.value for mode in settings.schedule_mode],
            redis=without_password(self._url),
            tools=str(settings.tools_path.resolve()),
            concurrency=settings.concurrency,
        )
        missing = unprotected() if settings.sandbox is Sandbox.PROCESS else ""
        if missing:
            log.warning("sandbox.incomplete", missing=missing)
        try:
            yield
        finally:
            await self._pool.stop()

    async def _work(self) -> None:
        """Everything that brings runs in, and the claiming of them."""
        settings = self._settings
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._intake.run(), name="intake")
            tasks.create_task(self._readiness.run(), name="readiness")
            tasks.create_task(self._recovery.promote(), name="retries")
            tasks.create_task(self._recovery.rescue(), name="rescue")
            tasks.create_task(_settled(self._registry.run), name="registry")
            tasks.create_task(_settled(self._prune), name="environments")
            tasks.create_task(self._tidy(), name="journal")
            tasks.create_task(Cancellations(self._store, self._observer).run(), name="cancellations")
            if self._triggers is not None:
                tasks.create_task(self._triggers.run(), name="triggers")
            if Mode.CRON in settings.schedule_mode:
                tasks.create_task(self._cron(), name="cron")
            if Mode.SPEEDRUN in settings.schedule_mode:
                from services.executor.scheduling.speedrun import Speedrun

                speedrun = Speedrun(self._store, settings.speedrun_interval, settings.speedrun_max_per_cycle)
                tasks.create_task(speedrun.run(), name="speedrun")

    async def _cron(self) -> None:
        from services.executor.scheduler import CronScheduler, Hands

        hands = Hands(self._intake, self.worker)
        await CronScheduler(self._store, self._settings.cron_check_interval, hands, self._observer).run()

    async def _prune(self) -> None:
        """Remove environments and copies of code that no tool has used for long, again and again."""
        while True:
            await self._environments.prune(self._settings.environment_retention)
            await asyncio.to_thread(self._bundles.prune, self._settings.environment_retention)
            await asyncio.sleep(PRUNE_SECONDS)

    async def _tidy(self) -> None:
        """Keep the journal within its size and lifetime, and expired runs out of the index."""
        while True:
            await until_available("journal", self._store.journal.tidy)
            await until_available("runs", self._store.history.tidy)
            await asyncio.sleep(TIDY_SECONDS)

    def _wanted_monitor(self, variables: Mapping[str, str]) -> "Monitor | None":
        """A monitor, unless nobody would read what it counts or collect its spans."""
        scraped = self._settings.health_port > 0
        if not scraped and not tracing.are_collected(variables):
            return None
        from services.executor.monitoring.prometheus import monitor

        return monitor(self.worker, self._loader.names, scraped=scraped, variables=variables)

    def _listener(self) -> Triggers | None:
        settings = self._settings
        if Mode.TRIGGER not in settings.schedule_mode:
            return None
        return Triggers(
            self._store, self._intake, self.worker, settings.trigger_channels, settings.heartbeat_ttl
        )


def retention(settings: Settings) -> Retention:
    """How much is kept, as the operator chose."""
    return Retention(
        record_ms=round(settings.run_retention * 1_000),
        metrics=settings.metrics_kept,
        journal=settings.journal_kept,
        log_lines=settings.log_lines_kept,
        journal_bytes=settings.journal_max_bytes,
    )


def store_options(settings: Settings) -> StoreOptions:
    """What the operator chose about the store."""
    return StoreOptions(settings.experiment_max_bytes, settings.channel_prefix)


def defaults(settings: Settings, variables: Mapping[str, str]) -> Defaults:
    """What applies to runs that don't say otherwise, as the operator chose."""
    return Defaults(
        timeout_seconds=settings.tool_execution_timeout,
        backoff=retry_backoff(
            settings.retry_max_attempts, settings.retry_backoff_min, settings.retry_backoff_max
        ),
        level=Level(settings.isolation),
        environment=settings.tool_environment,
        allowed=settings.tool_environment_allowed,
        variables={**settings.file_variables, **variables},
        reported_failures=settings.reported_failures,
    )


def _uv() -> Path:
    """The uv that was installed with the service."""
    beside = Path(sys.executable).with_name("uv")
    if beside.exists():
        return beside
    # Here, for it reads all that this Python was built with.
    import uv

    return Path(uv.find_uv_bin())


async def _settled(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    await asyncio.sleep(SETTLE_SECONDS)
    await work()


async def _unless(stop: asyncio.Event, waiting: Coroutine[Any, Any, object]) -> bool:
    """Await `waiting`; False when `stop` was set first."""
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(waiting)
        stopping = tasks.create_task(stop.wait())
        await asyncio.wait([task, stopping], return_when=asyncio.FIRST_COMPLETED)
        task.cancel()
        stopping.cancel()
    return not task.cancelled()
