"""Metric events: build, batch, emit."""

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
"""A quarter of what a result may have: they are sent to every subscriber in one message."""

PARTIAL_OVERHEAD_BYTES = 64
"""Counted for each, since small values take more memory than text."""

T = TypeVar("T")
Message = Mapping[str, Any]


def event(experiment_id: str, run_id: str, name: str, /, **members: Any) -> dict[str, Any]:
    """A message for the metrics channel; members that are None are left out."""
    base = {"experiment_id": experiment_id, "run_id": run_id, "event": name, "timestamp": time.time()}
    return {**base, **{key: value for key, value in members.items() if value is not None}}


class Emitter:
    """Carries what one attempt reports to the store, in order and in batches.

    `report` only notes; a task of the emitter's own sends, so that a slow store
    makes batches larger and holds up nobody.  The first `PARTIALS_KEPT_BYTES` of
    the partial results are `partials`; of those that follow, only the number
    is kept: `partials_dropped`.

    Args:
        experiment_id, run_id: whose events these are.
        emit: sends metric events; False when the attempt has been taken away.
        log: sends log lines.
        mask: takes out of them what must not be stored.
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
        self._is_taken_away = False
        self._experiment_id = experiment_id
        self._run_id = run_id
        self._emit = emit
        self._log = log
        self._mask = mask
        self._events: deque[Message] = deque(maxlen=BUFFERED_EVENTS)
        self._lines: deque[Message] = deque(maxlen=BUFFERED_EVENTS)
        self._sending: asyncio.Task[None] | None = None
        # A report comes from a warm process, in the context of the run that the process was made for.
        self._context = contextvars.copy_context()

    def report(self, told: Event) -> None:
        """Note what the tool said."""
        match told:
            case Partial(item):
                self._keep(item)
                return
            case LogLine(at, stream, text):
                self._line(at, stream, text)
            case Progress(done, total, message):
                self._note("progress", done=done, total=total, message=self._mask(message))
            case Metric(name, value, tags):
                # The value also under its own name: the metrics agent sums those.
                said = masked_within({**tags, name: value}, self._mask)
                members = {**said, "name": self._mask(name), "value": value}
                self._note("metric", **{key: one for key, one in members.items() if key not in _RESERVED})
        if self._sending is None:
            self._sending = asyncio.create_task(
                self._send(), name=f"emit {self._run_id}", context=self._context
            )

    async def drain(self) -> None:
        """Wait until everything noted is stored."""
        if self._sending is not None:
            await self._sending

    def drop(self) -> None:
        """Forget what was not sent; the attempt is not this worker's any more."""
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

    def _note(self, name: str, /, **members: Any) -> None:
        if not self._is_taken_away:
            self._events.append(event(self._experiment_id, self._run_id, name, **members))

    async def _send(self) -> None:
        try:
            while self._events or self._lines:
                if self._events and await _passed_on(self._emit, _taken(self._events)) is False:
                    log.warning("events.refused", run_id=self._run_id)
                    self._is_taken_away = True
                    self._events.clear()
                if self._lines:
                    await _passed_on(self._log, _taken(self._lines))
        finally:
            self._sending = None


_RESERVED = frozenset({"experiment_id", "run_id", "event", "timestamp"})


async def _passed_on(send: Callable[[Sequence[Message]], Awaitable[T]], batch: Sequence[Message]) -> T | None:
    """The answer; what the store refuses for good costs the batch and not the run."""
    try:
        return await send(batch)
    except FullsendError as exc:
        log.warning("events.dropped", count=len(batch), error=str(exc))
        return None


def _taken(waiting: deque[Message]) -> list[Message]:
    return [waiting.popleft() for _ in range(min(len(waiting), EMITTED_AT_ONCE))]
