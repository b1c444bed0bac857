"""What a run under way reports: masked, bounded, made into metric events, and sent in batches."""

import asyncio
import contextvars
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar, assert_never

import structlog

from services.executor.isolation.calls import Event, LogLine, Metric, Partial, Progress
from shared.documents import cut, json_text
from shared.errors import FullsendError
from shared.log import masked_within

log = structlog.get_logger()

BUFFERED_EVENTS = 10_000
EMITTED_AT_ONCE = 500
PARTIALS_KEPT_BYTES = 8_388_608
"""A quarter of the size of the largest result; every subscriber gets them in one message."""

PARTIAL_OVERHEAD_BYTES = 64
"""Added for each partial result, because small values take more memory than their text."""

NAME_CHARACTERS = 200
TEXT_CHARACTERS = 1_000
TAGS = 50
TAGS_BYTES = 4_096
"""The most that the tags of a metric may take as JSON."""

LINE_CHARACTERS = 8_192
EXECUTOR = "executor"
"""The stream of the lines in a run's log that the executor adds."""

T = TypeVar("T")
Message = Mapping[str, Any]


def event(experiment_id: str, run_id: str, name: str, /, **members: Any) -> dict[str, Any]:
    """Return a message for the metrics channel; members that are None are left out."""
    base = {"experiment_id": experiment_id, "run_id": run_id, "event": name, "timestamp": time.time()}
    return {**base, **{key: value for key, value in members.items() if value is not None}}


class KeptPartials:
    """The partial results of one attempt, up to a bound.

    Attributes:
        items: the first partial results, up to `PARTIALS_KEPT_BYTES`; the very first however large.
        explicit: those of them that are no part of the result.
        dropped: the number of all others.
    """

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.explicit: list[Any] = []
        self.dropped = 0
        self._size_bytes = 0

    def add(self, partial: Partial) -> bool:
        """Keep the item or count it as dropped; return whether it is kept."""
        item = partial.item
        if self._size_bytes < PARTIALS_KEPT_BYTES:
            self._size_bytes += _json_bytes(item) + PARTIAL_OVERHEAD_BYTES
        if self._size_bytes < PARTIALS_KEPT_BYTES or not self.items:
            self.items.append(item)
            if partial.explicit:
                self.explicit.append(item)
            return True
        self.dropped += 1
        return False


class ReportBounds:
    """Masks the reports of one attempt, and cuts what is too long.

    Args:
        mask: replaces secrets in a text.
        note: receives a line for the run's log that says what was cut: each of them once.
    """

    def __init__(self, mask: Callable[[str], str], note: Callable[[LogLine], None]) -> None:
        self._mask = mask
        self._note_line = note
        self._noted: set[str] = set()

    def bounded(self, reported: Event) -> Event:
        """Return a report without secrets, in which no text is too long.

        A partial result is only masked; `KeptPartials` says which of them are kept.
        """
        match reported:
            case Progress(done, total, message):
                short = self._short("the message of a progress report", self._mask(message), TEXT_CHARACTERS)
                return Progress(done, total, short)
            case Metric(name, value, tags):
                name = self._short("the name of a metric", self._mask(name), NAME_CHARACTERS)
                if not math.isfinite(value):
                    self._note(
                        f"metric {name!r} is {value!r}; such values are published as null",
                        topic="not finite",
                    )
                return Metric(name, value, self._tags(tags))
            case Partial(item, explicit):
                return Partial(masked_within(item, self._mask), explicit)
            case LogLine(at, stream, text):
                return LogLine(at, stream, cut(self._mask(text), LINE_CHARACTERS))
            case _:
                assert_never(reported)

    def _tags(self, tags: Mapping[str, Any]) -> dict[str, Any]:
        """Tags as they are published: without secrets, and what is too long is cut or left out."""
        kept: dict[str, Any] = {}
        size_bytes = len("{}")
        for key, value in masked_within(tags, self._mask).items():
            name = self._short("the name of a tag", key, NAME_CHARACTERS)
            text = value if isinstance(value, str) else json_text(value)
            short = self._short("the value of a tag", text, TEXT_CHARACTERS)
            kept_value = value if short is text and not isinstance(value, str) else short
            size_bytes += len(":,") + _json_bytes(name) + _json_bytes(kept_value)
            if size_bytes > TAGS_BYTES or len(kept) == TAGS:
                self._note(
                    f"a metric has {TAGS} tags and {TAGS_BYTES:,} bytes of tags at most; some are left out"
                )
                break
            kept[name] = kept_value
        return kept

    def _short(self, what: str, text: str, most: int) -> str:
        if len(text) <= most:
            return text
        self._note(f"{what} has {most:,} characters at most and was cut")
        return cut(text, most)

    def _note(self, text: str, topic: str = "") -> None:
        """Say something in the run's log, once in an attempt; of several texts on one topic, the first."""
        if (topic or text) not in self._noted:
            self._noted.add(topic or text)
            self._note_line(LogLine(time.time(), EXECUTOR, text))


class Emitter:
    """Sends the reports of one attempt to the store, in order and in batches.

    `report` only queues them, and a task of the emitter sends them: a slow store makes the batches
    larger, and delays nothing else.

    Args:
        experiment_id, run_id: those of the events.
        emit: sends metric events; returns False once another worker has taken the run over.
        log: sends log lines.
        mask: replaces secrets in a text.
        keep: keeps explicit partial results, for what follows when this attempt has ended in any way.

    Attributes:
        partials: the partial results of this attempt.
    """

    def __init__(
        self,
        experiment_id: str,
        run_id: str,
        emit: Callable[[Sequence[Message]], Awaitable[bool]],
        log: Callable[[Sequence[Message]], Awaitable[None]],
        mask: Callable[[str], str] = str,
        keep: Callable[[Sequence[Any]], Awaitable[None]] | None = None,
    ) -> None:
        self.partials = KeptPartials()
        self._is_refused = False
        self._experiment_id = experiment_id
        self._run_id = run_id
        self._emit = emit
        self._log = log
        self._keep = keep
        self._unkept: deque[Any] = deque()
        self._events: deque[Message] = deque(maxlen=BUFFERED_EVENTS)
        lines: deque[Message] = deque(maxlen=BUFFERED_EVENTS)
        self._lines = lines
        # Without a reference to this object, which would leave a cycle behind each run.
        self._bounds = ReportBounds(mask, lambda line: lines.append(_logged(line)))
        self._sending: asyncio.Task[None] | None = None
        # Reports arrive in the context of the run that the warm process was started for.
        self._context = contextvars.copy_context()

    def report(self, reported: Event) -> None:
        """Queue a report of the tool."""
        if isinstance(reported, Partial) and not (self.partials.add(reported) and reported.explicit):
            return
        match self._bounds.bounded(reported):
            case Partial(item):
                self._unkept.append(item)
            case LogLine() as line:
                self._lines.append(_logged(line))
            case Progress(done, total, message):
                self._queue("progress", done=done, total=total, message=message)
            case Metric(name, value, tags):
                self._queue_metric(name, value, tags)
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

    def _queue_metric(self, name: str, value: float, tags: Mapping[str, Any]) -> None:
        # A finite value has its own name as well: the metrics agent adds up members by name.
        is_finite = math.isfinite(value)
        said = {name: value, "value": value} if is_finite else {"not_finite": str(value)}
        members = {**tags, **said, "name": name}
        kept = {key: one for key, one in members.items() if key not in _RESERVED}
        one = event(self._experiment_id, self._run_id, "metric", **kept)
        self._append(one if is_finite else {**one, "value": None})

    def _queue(self, name: str, /, **members: Any) -> None:
        self._append(event(self._experiment_id, self._run_id, name, **members))

    def _append(self, one: Message) -> None:
        if not self._is_refused:
            self._events.append(one)

    async def _send(self) -> None:
        try:
            while self._events or self._lines or self._unkept:
                if self._unkept:
                    items = _batch(self._unkept)
                    if self._keep is not None:
                        await _delivered(self._keep, items)
                if self._events and await _delivered(self._emit, _batch(self._events)) is False:
                    log.warning("events.refused", run_id=self._run_id)
                    self._is_refused = True
                    self._events.clear()
                if self._lines:
                    await _delivered(self._log, _batch(self._lines))
        finally:
            self._sending = None


_RESERVED = frozenset({"experiment_id", "run_id", "event", "timestamp"})


def _logged(line: LogLine) -> Message:
    return {"at": f"{line.at:.6f}", "stream": line.stream, "text": line.text}


async def _delivered(send: Callable[[Sequence[Any]], Awaitable[T]], batch: Sequence[Any]) -> T | None:
    """Return the answer of the store; drop the batch if the store refuses it for good."""
    try:
        return await send(batch)
    except FullsendError as exc:
        log.warning("events.dropped", count=len(batch), error=str(exc))
        return None


def _json_bytes(value: Any) -> int:
    """Return the size of `value` as JSON in UTF-8."""
    return len(json_text(value).encode(errors="replace"))


def _batch(waiting: deque[T]) -> list[T]:
    return [waiting.popleft() for _ in range(min(len(waiting), EMITTED_AT_ONCE))]
