"""Metric events: builds them, and sends those of an attempt in batches."""

import asyncio
import contextvars
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import structlog

from services.executor.isolation.calls import Event, LogLine, Metric, Partial, Progress
from shared.documents import json_text
from shared.errors import FullsendError
from shared.log import masked_within

log = structlog.get_logger()

BUFFERED_EVENTS = 10_000
EMITTED_AT_ONCE = 500
PARTIALS_KEPT_BYTES = 8_388_608
"""A quarter of the size of the largest result; every subscriber gets them in one message."""

PARTIAL_OVERHEAD_BYTES = 64
"""Added for each partial result, because small values take more memory than their text."""

T = TypeVar("T")
Message = Mapping[str, Any]


def event(experiment_id: str, run_id: str, name: str, /, **members: Any) -> dict[str, Any]:
    """Return a message for the metrics channel; members that are None are left out."""
    base = {"experiment_id": experiment_id, "run_id": run_id, "event": name, "timestamp": time.time()}
    return {**base, **{key: value for key, value in members.items() if value is not None}}


class Emitter:
    """Sends the reports of one attempt to the store, in order and in batches.

    `report` only queues them, and a task of the emitter sends them: a slow store makes the batches
    larger, and delays nothing else.

    Args:
        experiment_id, run_id: those of the events.
        emit: sends metric events; returns False once another worker has taken the run over.
        log: sends log lines.
        mask: replaces secrets in a text.

    Attributes:
        partials: the first partial results, up to `PARTIALS_KEPT_BYTES`.
        partials_dropped: the number of all others.
    """

    def __init__(
        self,
        experiment_id: str,
        run_id: str,
        emit: Callable[[Sequence[Message]], Awaitable[bool]],
        log: Callable[[Sequence[Message]], Awaitable[None]],
        mask: Callable[[str], str] = str,
    ) -> None:
        self.partials: list[Any] = []
        self.partials_dropped = 0
        self._partials_bytes = 0
        self._is_refused = False
        self._experiment_id = experiment_id
        self._run_id = run_id
        self._emit = emit
        self._log = log
        self._mask = mask
        self._events: deque[Message] = deque(maxlen=BUFFERED_EVENTS)
        self._lines: deque[Message] = deque(maxlen=BUFFERED_EVENTS)
        self._sending: asyncio.Task[None] | None = None
        # Reports arrive in the context of the run that the warm process was started for.
        self._context = contextvars.copy_context()

    def report(self, reported: Event) -> None:
        """Queue a report of the tool."""
        match reported:
            case Partial(item):
                self._keep(item)
                return
            case LogLine(at, stream, text):
                self._line(at, stream, text)
            case Progress(done, total, message):
                self._queue("progress", done=done, total=total, message=self._mask(message))
            case Metric(name, value, tags):
                # The value has its own name as well: the metrics agent adds up members by name.
                shown = masked_within({**tags, name: value}, self._mask)
                members = {**shown, "name": self._mask(name), "value": value}
                self._queue("metric", **{key: one for key, one in members.items() if key not in _RESERVED})
        if self._sending is None:
            self._sending = asyncio.create_task(
                self._send(), name=f"emit {self._run_id}", context=self._context
            )

    async def drain(self) -> None:
        """Wait until all queued reports are stored."""
        if self._sending is not None:
            await self._sending

    def drop(self) -> None:
        """Drop the reports that are not sent yet."""
        if self._sending is not None:
            self._sending.cancel()

    def _keep(self, item: Any) -> None:
        if self._partials_bytes < PARTIALS_KEPT_BYTES:
            self._partials_bytes += len(json_text(item)) + PARTIAL_OVERHEAD_BYTES
        if self._partials_bytes < PARTIALS_KEPT_BYTES or not self.partials:
            self.partials.append(item)
        else:
            self.partials_dropped += 1

    def _line(self, at: float, stream: str, text: str) -> None:
        self._lines.append({"at": f"{at:.6f}", "stream": stream, "text": self._mask(text)})

    def _queue(self, name: str, /, **members: Any) -> None:
        if not self._is_refused:
            self._events.append(event(self._experiment_id, self._run_id, name, **members))

    async def _send(self) -> None:
        try:
            while self._events or self._lines:
                if self._events and await _delivered(self._emit, _batch(self._events)) is False:
                    log.warning("events.refused", run_id=self._run_id)
                    self._is_refused = True
                    self._events.clear()
                if self._lines:
                    await _delivered(self._log, _batch(self._lines))
        finally:
            self._sending = None


_RESERVED = frozenset({"experiment_id", "run_id", "event", "timestamp"})


async def _delivered(send: Callable[[Sequence[Message]], Awaitable[T]], batch: Sequence[Message]) -> T | None:
    """Return the answer of the store; drop the batch if the store refuses it for good."""
    try:
        return await send(batch)
    except FullsendError as exc:
        log.warning("events.dropped", count=len(batch), error=str(exc))
        return None


def _batch(waiting: deque[Message]) -> list[Message]:
    return [waiting.popleft() for _ in range(min(len(waiting), EMITTED_AT_ONCE))]
