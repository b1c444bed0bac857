"""`/healthz`, `/readyz` and `/metrics` over HTTP, from a thread of its own.

The thread asks the event loop, so a loop that is blocked is noticed and said.

- `/healthz`: the loop turns.  Redis being away is no reason to be killed, because
  the runs under way and the outcomes that wait to be stored would go with the process.
- `/readyz`: Redis answers, triggers are heard if that is a mode, and it isn't stopping.
- `/metrics`: Prometheus' text format; what can't be seen in time is left out.
"""

import asyncio
import concurrent.futures
import contextlib
import http.client
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
"""Less than `LOOP_SECONDS`, so that a slow Redis isn't taken for a blocked loop."""

CLIENT_SECONDS = 5.0
POLL_SECONDS = 0.1
PROMETHEUS_TEXT = "text/plain; version=0.0.4; charset=utf-8"


class LoopBlockedError(Exception):
    """The event loop did not come round in time."""


# -- what is asked of the worker, in its event loop -----------------------------------


@dataclass(frozen=True, slots=True)
class Levels:
    """How full everything is; None is what Redis did not say in time.

    `oldest_seconds` is how long the order has waited that waits the longest, 0 when none does;
    `processes` how many there are for tools, by state.
    """

    busy: int
    slots: int
    depth: Depth | None = None
    oldest_seconds: float | None = None
    processes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker as the endpoints see it.

    `listening` is set while triggers are heard, None when that isn't a mode; `stop`
    is set when it takes no more runs; `slots` is how many runs there may be at once;
    `processes` counts those for tools, by state.
    """

    name: str
    store: Store
    intake: Intake
    slots: int
    listening: asyncio.Event | None
    stop: asyncio.Event
    processes: Callable[[], Mapping[str, int]] = dict

    async def missing(self) -> dict[str, str]:
        """What keeps the worker from taking runs, a sentence each."""
        missing: dict[str, str] = {}
        if self.stop.is_set():
            missing["draining"] = "the worker is stopping and takes no new runs"
        elif self.listening is not None and not self.listening.is_set():
            missing["triggers"] = "the worker does not listen for triggers yet, or not any more"
        try:
            async with asyncio.timeout(REDIS_SECONDS):
                await self.store.slots.now_ms()
        except TimeoutError:
            missing["redis"] = f"no answer within {REDIS_SECONDS:g} s"
        except StoreError as exc:
            missing["redis"] = masked(str(exc))
        return missing

    async def levels(self) -> Levels:
        """How full everything is."""
        queue = self.store.queue
        here = Levels(self.intake.busy, self.slots, processes=self.processes())
        try:
            async with asyncio.timeout(REDIS_SECONDS):
                depth = await queue.depth()
                oldest = await queue.oldest_seconds()
        except (StoreError, TimeoutError):
            return here
        return replace(here, depth=depth, oldest_seconds=oldest)


# -- what is answered, in threads of the server ---------------------------------------


class Gauges(Collector):
    """Looks when somebody asks."""

    def __init__(self, look: Callable[[], Levels]) -> None:
        self._look = look

    def collect(self) -> Iterator[Metric]:
        """The gauges as they are now; those that can't be seen are left out."""
        try:
            levels = self._look()
        except LoopBlockedError:
            return
        yield GaugeMetricFamily("fullsend_slots_busy", "Runs that have a slot here", levels.busy)
        yield GaugeMetricFamily("fullsend_slots_total", "How many may have one", levels.slots)
        processes = GaugeMetricFamily("fullsend_pool_processes", "Processes for tools", labels=["state"])
        for state, count in levels.processes.items():
            processes.add_metric([state], count)
        yield processes
        if levels.depth is not None:
            depth = levels.depth
            yield GaugeMetricFamily("fullsend_queue_waiting", "Orders that wait for a worker", depth.waiting)
            yield GaugeMetricFamily("fullsend_queue_held", "Orders that a worker holds", depth.held)
            yield GaugeMetricFamily("fullsend_queue_delayed", "Orders for a later time", depth.delayed)
        if levels.oldest_seconds is not None:
            promise = "How long the order has waited that waits the longest"
            yield GaugeMetricFamily("fullsend_queue_oldest_seconds", promise, levels.oldest_seconds)


@dataclass(frozen=True, slots=True)
class Response:
    """What goes over the wire."""

    status: int
    content_type: str
    body: bytes


class Answers:
    """Answers by path, in any thread.  Made in the worker's event loop.

    Args:
        worker: who is asked.
        registry: its counters; the gauges join them.
    """

    def __init__(self, worker: Worker, registry: CollectorRegistry) -> None:
        self._worker = worker
        self._registry = registry
        self._loop = asyncio.get_running_loop()
        registry.register(Gauges(lambda: self._in_loop(worker.levels())))

    def to(self, path: str) -> Response:
        """The answer to a GET of `path`."""
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
        return self._told("alive", missing)

    def _readiness(self) -> Response:
        try:
            missing = self._in_loop(self._worker.missing())
        except LoopBlockedError as exc:
            missing = {"loop": str(exc)}
        return self._told("ready", missing)

    def _told(self, fact: str, missing: dict[str, str]) -> Response:
        members = {fact: not missing, "worker": self._worker.name, "missing": missing}
        return Response(503 if missing else 200, "application/json", json.dumps(members).encode() + b"\n")

    def _in_loop(self, question: Coroutine[Any, Any, T]) -> T:
        """The answer of the event loop.  Raises `LoopBlockedError`."""
        try:
            future = asyncio.run_coroutine_threadsafe(question, self._loop)
        except RuntimeError:
            question.close()
            raise LoopBlockedError("the event loop has ended") from None
        try:
            return future.result(LOOP_SECONDS)
        except TimeoutError:
            future.cancel()
            raise LoopBlockedError(f"the event loop has not come round for {LOOP_SECONDS:g} s") from None
        except concurrent.futures.CancelledError:
            raise LoopBlockedError("the event loop is ending") from None


# -- the server -----------------------------------------------------------------------


@contextlib.asynccontextmanager
async def serving(host: str, port: int, answers: Answers) -> AsyncIterator[int]:
    """Answer on `host`:`port` while the block runs; the port, which the system chooses for 0.

    Raises:
        SettingsError: nobody can listen there.
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
    allow_reuse_port = False  # a second worker must not share the port unseen

    def __init__(self, host: str, port: int, answers: Answers) -> None:
        self.answers = answers
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Bind; the inherited way also asks a name server for the host's name, and waits for it."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is its own affair; anything else is a fault of ours."""
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
        """Nothing: whoever watches asks every few seconds."""

    def _head(self) -> Response:
        response = self.server.answers.to(self.path)
        self.send_response(response.status)
        self.send_header("Content-Type", response.content_type)
        self.send_header("Content-Length", str(len(response.body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        return response


# -- for the command line -------------------------------------------------------------


def ask(host: str, port: int) -> dict[str, Any]:
    """What `/readyz` of a worker says: `ready`, `missing` (sentences by name) and, if it answers, `worker`.

    Never raises: a worker that doesn't answer is not ready, and `missing` says why.
    """
    asked = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # asked there, not bound
    connection = http.client.HTTPConnection(asked, port, timeout=LOOP_SECONDS + 1)
    try:
        connection.request("GET", "/readyz")
        said = json.loads(connection.getresponse().read())
    except (OSError, ValueError, http.client.HTTPException) as exc:
        return _unanswered(f"{asked}:{port} does not answer as a worker does: {exc}")
    finally:
        connection.close()
    if isinstance(said, dict) and isinstance(said.get("missing"), dict) and "ready" in said:
        return said
    return _unanswered(f"{asked}:{port} does not answer as a worker does; is another program there?")


def _unanswered(reason: str) -> dict[str, Any]:
    return {"ready": False, "missing": {"endpoint": reason}}
