"""What runs in a Modal container: the pool of warm isolated processes, and the calls that it gets.

A container has no mounted volume: code and artifacts are read and written by requests.  What its calls
report goes into a queue, a partition for each planner.  A planner renews a lease while it lives; once
that has run out, nobody waits for the results, and its calls are ended.
"""

import asyncio
import contextlib
import json
import os
import platform
import queue
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import modal
import structlog

from services.executor.artifacts import Keeper, open_blobs
from services.executor.isolation.calls import Event
from services.executor.outcome import Outcome, Status
from services.executor.tools.bundles import Bundles, parse
from services.planner.backends.local import LocalBackend
from services.planner.backends.modal_options import QUEUE
from services.planner.backends.remote import RemoteCall, Room, event_text, lost_result, store_for
from services.planner.execution import ExecutionResult, error_of
from services.planner.runtime import RuntimeConfig, ToolRuntime
from shared.errors import ToolNotFoundError
from shared.threads import in_thread

log = structlog.get_logger()

PYTHON: Final = ".".join(platform.python_version_tuple()[:2])
BEGUN: Final = "begun"
ENDED: Final = "ended"
REPORTED: Final = "reported"
ABANDONED: Final = b""
"""What is returned for a call that was ended because its planner seemed to be gone."""

REPORTS_TTL_SECONDS: Final = 3_600
LOOKS_PER_LEASE: Final = 4

Message = tuple[str, str, str]
"""The token of a call, what has happened, and a text."""


def lease_partition(topic: str) -> str:
    """Return the partition that exists while the planner of a topic lives."""
    return f"{topic}.lease"


class ToolContainer:
    """The pool of one container.

    Args:
        config: its defaults; everything but the environments of tools is kept below `folder`.
        slots: calls at once.
        folder: for code.
    """

    def __init__(self, config: RuntimeConfig, slots: int, folder: Path) -> None:
        (folder / "tools").mkdir(parents=True, exist_ok=True)
        config = replace(
            config,
            tools_path=folder / "tools",
            artifacts=str(folder / "code"),
            bundles_path=folder / "bundles",
        )
        self._bundles = Bundles(open_blobs(config.artifacts), config.bundles_path)
        self._backend = LocalBackend(ToolRuntime(config, slots, os.environ), slots)
        self._queue = modal.Queue.from_name(QUEUE)
        self._codes: dict[str, asyncio.Future[None]] = {}
        self._leases: dict[str, _Lease] = {}
        self._reports: dict[str, _Reports] = {}
        self._room = Room()

    async def open(self) -> None:
        """Start the pool."""
        await self._backend.__aenter__()

    async def call(self, call: RemoteCall, code: str, lease_seconds: float, permit: str) -> bytes:
        """Call a tool once, and return its result as JSON.  A failure of any kind is a result.

        Args:
            call: the call.
            code: the URL of the store that has the tool's code.
            lease_seconds: how long a planner may be silent before its calls are ended.
            permit: the partition with the only permit to begin; empty if the call may be repeated.
        """
        reports = self._reports.setdefault(call.topic, _Reports(self._queue, call.topic))
        try:
            async with self._room.place(alone=call.is_alone), self._lease(call.topic, lease_seconds) as lease:
                # The partition of a permit is empty once the call has begun.
                if permit and await self._queue.get.aio(block=False, partition=permit) is None:
                    return _answer(lost_result(call))
                reports.send((call.token, BEGUN, PYTHON))
                result = await self._performed(call, code, lease, reports)
            return ABANDONED if lease.is_over.is_set() else result
        finally:
            reports.send((call.token, ENDED, ""))

    async def _performed(self, call: RemoteCall, code: str, lease: "_Lease", reports: "_Reports") -> bytes:
        try:
            await self._keep(call.tool, code)
            keeper = Keeper(store_for(call), call.inline_max_bytes)
            result = await self._backend.run(
                call.execution,
                report=lambda event: _report(reports, call, event),
                cancel=lease.is_over,
                keeper=keeper,
            )
        except Exception as exc:  # an exception would be unpickled by the planner, from whatever module
            log.exception("call.failed", run_id=call.run_id)
            error = error_of(Outcome.of_error(exc))
            result = ExecutionResult(call.run_id, Status.FAILED, "local", "", error=error)
        return _answer(result)

    async def _keep(self, reference: str, code: str) -> None:
        """Fetch a tool's code, once in the life of the container."""
        if reference not in self._codes:
            self._codes[reference] = asyncio.ensure_future(in_thread(self._fetch, reference, code))
        try:
            await asyncio.shield(self._codes[reference])
        except Exception:
            self._codes.pop(reference, None)
            raise

    def _fetch(self, reference: str, code: str) -> None:
        name, digest = parse(reference) or (reference, "")
        if not digest:
            raise ToolNotFoundError(reference, "a tool is called by its content")
        self._bundles.keep(Bundles(open_blobs(code), Path()).restore(name, digest))

    @contextlib.asynccontextmanager
    async def _lease(self, topic: str, seconds: float) -> AsyncIterator["_Lease"]:
        """Watch the lease of a planner while calls of it run."""
        lease = self._leases.get(topic)
        if lease is None or lease.is_over.is_set():
            lease = self._leases[topic] = _Lease(self._queue, topic, seconds)
        async with lease:
            yield lease


class _Lease:
    """Whether a planner lives.

    Attributes:
        is_over: set once it was silent for too long.
    """

    def __init__(self, messages: modal.Queue, topic: str, seconds: float) -> None:
        self.is_over = asyncio.Event()
        self._messages = messages
        self._topic = topic
        self._seconds = seconds
        self._calls = 0
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        self._calls += 1
        if self._calls == 1:
            self._watching = asyncio.create_task(self._watch(), name=f"lease {self._topic}")

    async def __aexit__(self, *exc_info: object) -> None:
        self._calls -= 1
        if not self._calls and self._watching is not None:
            self._watching.cancel()

    async def _watch(self) -> None:
        while True:
            try:
                if not await self._messages.len.aio(partition=lease_partition(self._topic)):
                    self.is_over.set()
                    return
            except (modal.exception.Error, OSError) as exc:
                log.warning("lease.unknown", topic=self._topic, error=str(exc))
            await asyncio.sleep(self._seconds / LOOKS_PER_LEASE)


class _Reports:
    """Sends what the calls of one planner report, in order; a planner that doesn't listen loses it."""

    def __init__(self, messages: modal.Queue, topic: str) -> None:
        self._messages = messages
        self._topic = topic
        self._waiting: list[Message] = []
        self._sending: asyncio.Task[None] | None = None

    def send(self, message: Message) -> None:
        """Send a message soon."""
        self._waiting.append(message)
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send(), name=f"reports {self._topic}")

    async def _send(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                await self._messages.put_many.aio(
                    batch, block=False, partition=self._topic, partition_ttl=REPORTS_TTL_SECONDS
                )
            except (modal.exception.Error, OSError, queue.Full) as exc:
                log.warning("reports.dropped", topic=self._topic, count=len(batch), error=str(exc))


def _report(reports: _Reports, call: RemoteCall, event: Event) -> None:
    if text := event_text(event):
        reports.send((call.token, REPORTED, text))


def _answer(result: ExecutionResult) -> bytes:
    return json.dumps(result.to_json()).encode()
