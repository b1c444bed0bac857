"""The health and monitoring endpoints of a worker: `/healthz`, `/readyz` and `/metrics` over HTTP.

An HTTP server in a thread answers them.  It asks the event loop, so that a blocked loop is reported.

- `/healthz`: 200 while the event loop runs.  It stays 200 while Redis is unavailable: a restart would
  lose the runs in progress, and the outcomes that wait to be stored.
- `/readyz`: 200 while the worker takes runs: Redis answers, the worker listens for triggers if that is
  one of its modes, and it isn't stopping.
- `/metrics`: Prometheus' text format.  Gauges that can't be read in time are left out.

For another page, add a case to `Answers.to`.
"""

import asyncio
import concurrent.futures
import contextlib
import json
import socket
import socketserver
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar
from urllib.parse import urlsplit

import structlog
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from services.executor.intake import Intake
from services.executor.store import Depth, Store
from shared.errors import SettingsError, StoreError
from shared.log import masked

log = structlog.get_logger()
T = TypeVar("T")

LOOP_SECONDS = 2.0
REDIS_SECONDS = 1.5
"""Less than `LOOP_SECONDS`, so that a slow Redis is not reported as a blocked loop."""

CLIENT_SECONDS = 5.0
POLL_SECONDS = 0.1
PROMETHEUS_TEXT = "text/plain; version=0.0.4; charset=utf-8"


class LoopBlockedError(Exception):
    """The event loop did not answer in time."""


# -- in the worker's event loop -------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Levels:
    """The load of a worker and of the queue; None where Redis did not answer in time.

    Attributes:
        busy: runs that have a slot here.
        slots: runs that may have a slot here at once.
        depth: orders in the queue, by where they are.
        oldest_seconds: how long the oldest order has waited; 0 for an empty queue.
        processes: the number of tool processes by state.
    """

    busy: int
    slots: int
    depth: Depth | None = None
    oldest_seconds: float | None = None
    processes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Worker:
    """What the endpoints read of a worker.

    Attributes:
        slots: how many runs the worker performs at once.
        listening: set while the worker listens for triggers; None if that is none of its modes.
        stop: set once the worker takes no more runs.
        processes: returns the number of tool processes by state.
        redis_seconds: how long an answer of Redis may take.
    """

    name: str
    store: Store
    intake: Intake
    slots: int
    listening: asyncio.Event | None
    stop: asyncio.Event
    processes: Callable[[], Mapping[str, int]] = dict
    redis_seconds: float = REDIS_SECONDS

    async def missing(self) -> dict[str, str]:
        """Return why the worker takes no runs: a sentence for each reason, by name; empty if it does."""
        missing: dict[str, str] = {}
        if self.stop.is_set():
            missing["draining"] = "the worker is stopping and takes no new runs"
        elif self.listening is not None and not self.listening.is_set():
            missing["triggers"] = "the worker does not listen for triggers yet, or not any more"
        try:
            async with asyncio.timeout(self.redis_seconds):
                await self.store.due_times.now_ms()
        except TimeoutError:
            missing["redis"] = f"no answer within {self.redis_seconds:g} s"
        except StoreError as exc:
            missing["redis"] = masked(str(exc))
        return missing

    async def levels(self) -> Levels:
        """Return the load of the worker and of the queue."""
        queue = self.store.queue
        here = Levels(self.intake.busy, self.slots, processes=self.processes())
        try:
            async with asyncio.timeout(self.redis_seconds):
                depth = await queue.depth()
                oldest = await queue.oldest_seconds()
        except (StoreError, TimeoutError):
            return here
        return replace(here, depth=depth, oldest_seconds=oldest)


# -- in the server's threads ----------------------------------------------------------


class Gauges(Collector):
    """Reads the load of the worker whenever Prometheus scrapes."""

    def __init__(self, look: Callable[[], Levels]) -> None:
        self._look = look

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges; those that can't be read are left out."""
        try:
            levels = self._look()
        except LoopBlockedError:
            return
        yield GaugeMetricFamily("fullsend_slots_busy", "Runs that occupy a slot of this worker", levels.busy)
        yield GaugeMetricFamily("fullsend_slots_total", "Slots of this worker", levels.slots)
        processes = GaugeMetricFamily("fullsend_pool_processes", "Tool processes by state", labels=["state"])
        for state, count in levels.processes.items():
            processes.add_metric([state], count)
        yield processes
        if levels.depth is not None:
            depth = levels.depth
            yield GaugeMetricFamily("fullsend_queue_waiting", "Orders that wait for a worker", depth.waiting)
            yield GaugeMetricFamily("fullsend_queue_held", "Orders that a worker holds", depth.held)
            yield GaugeMetricFamily(
                "fullsend_queue_delayed", "Orders that wait for their time", depth.delayed
            )
        if levels.oldest_seconds is not None:
            promise = "How long the oldest order has waited"
            yield GaugeMetricFamily("fullsend_queue_oldest_seconds", promise, levels.oldest_seconds)


@dataclass(frozen=True, slots=True)
class Response:
    """An HTTP response."""

    status: int
    content_type: str
    body: bytes


class Answers:
    """Answers requests by path, in any thread.  Must be created in the worker's event loop.

    Args:
        worker: the worker that is reported.
        registry: the worker's counters; the gauges are added to it.
        loop_seconds: how long an answer of the event loop may take.
    """

    def __init__(
        self, worker: Worker, registry: CollectorRegistry, loop_seconds: float = LOOP_SECONDS
    ) -> None:
        self._worker = worker
        self._registry = registry
        self._loop = asyncio.get_running_loop()
        self._loop_seconds = loop_seconds
        registry.register(Gauges(lambda: self._in_loop(worker.levels())))

    def to(self, path: str) -> Response:
        """Return the response to a GET of `path`."""
        match urlsplit(path).path:
            case "/healthz":
                return self._health()
            case "/readyz":
                return self._readiness()
            case "/metrics":
                return Response(200, PROMETHEUS_TEXT, generate_latest(self._registry))
            case _:
                return Response(404, "text/plain; charset=utf-8", b"/healthz, /readyz, /metrics\n")

    def _health(self) -> Response:
        missing: dict[str, str] = {}
        try:
            self._in_loop(asyncio.sleep(0))
        except LoopBlockedError as exc:
            missing = {"loop": str(exc)}
        return self._verdict("alive", missing)

    def _readiness(self) -> Response:
        try:
            missing = self._in_loop(self._worker.missing())
        except LoopBlockedError as exc:
            missing = {"loop": str(exc)}
        return self._verdict("ready", missing)

    def _verdict(self, fact: str, missing: dict[str, str]) -> Response:
        members = {fact: not missing, "worker": self._worker.name, "missing": missing}
        return Response(503 if missing else 200, "application/json", json.dumps(members).encode() + b"\n")

    def _in_loop(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run the coroutine in the event loop, and return its result.  Raises `LoopBlockedError`."""
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except RuntimeError:
            coroutine.close()
            raise LoopBlockedError("the event loop has ended") from None
        try:
            return future.result(self._loop_seconds)
        except TimeoutError:
            future.cancel()
            raise LoopBlockedError(f"the event loop did not answer within {self._loop_seconds:g} s") from None
        except concurrent.futures.CancelledError:
            raise LoopBlockedError("the event loop is ending") from None


# -- the server -----------------------------------------------------------------------


@contextlib.asynccontextmanager
async def serving(host: str, port: int, answers: Answers) -> AsyncIterator[int]:
    """Serve the endpoints on `host`:`port` while the block runs; yield the port.

    Args:
        port: 0 for any free port.

    Raises:
        SettingsError: the address can't be listened on.
    """
    try:
        server = _Server(host, port, answers)
    except (OSError, OverflowError) as exc:
        reason = getattr(exc, "strerror", None) or exc
        raise SettingsError(
            f"HEALTH_PORT={port}: can't listen on {host}: {reason}; choose another port, or 0 for none"
        ) from None
    threading.Thread(target=server.serve_forever, args=(POLL_SECONDS,), name="endpoints", daemon=True).start()
    log.info("endpoints.listening", host=host, port=server.server_port)
    try:
        yield server.server_port
    finally:
        await asyncio.shield(asyncio.to_thread(server.shutdown))
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_port = False  # a second worker on the same port must fail

    def __init__(self, host: str, port: int, answers: Answers) -> None:
        self.answers = answers
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Bind the address.  Unlike the inherited method, don't wait for a name server to resolve it."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log an error of ours; a client that hangs up is none."""
        if not isinstance(sys.exc_info()[1], OSError):
            log.exception("endpoint.broke")


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = CLIENT_SECONDS

    def do_GET(self) -> None:
        self.wfile.write(self._head().body)

    def do_HEAD(self) -> None:
        self._head()

    def version_string(self) -> str:
        return "fullsend"

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: probes come every few seconds."""

    def _head(self) -> Response:
        response = self.server.answers.to(self.path)
        self.send_response(response.status)
        self.send_header("Content-Type", response.content_type)
        self.send_header("Content-Length", str(len(response.body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        return response
