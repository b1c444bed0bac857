"""Reads the journal once for all pages, and gathers for each what it has not been told yet.

A page is told a few times a second: the newest progress of each run, and points of metrics, thinned if there
are many.  What is gathered is bounded, whatever happens in between.
"""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import structlog

from services.executor.store import JournalEntry, Store
from services.executor.store.history import READ_AT_ONCE
from shared.errors import StoreError, StoreUnavailableError

log = structlog.get_logger()

POINTS: Final = 400
"""Points of one series in one message; more are thinned."""
SERIES: Final = 100
RUNS: Final = 200
"""Runs in one message; a page that doesn't know a run reads its list again anyway."""

READ_WAIT_MS: Final = 2_000
RECONNECT_SECONDS: Final = 1.0
BUCKET_SECONDS: Final = 60
BUCKETS: Final = 60
DURATIONS: Final = 2_000
COMMON: Final = frozenset({"experiment_id", "run_id", "event", "timestamp", "name", "value"})

Point = tuple[float, float]
Reply = TypeVar("Reply")


class Gathered:
    """What a page has not been told yet.

    Args:
        run_id: of whose events the page shows everything; None for a page that lists runs.
        since: the cursor of the last message that the page knows.
    """

    def __init__(self, run_id: str | None, since: str) -> None:
        self.run_id = run_id
        self.cursor = since
        self._is_behind = True
        self._runs: dict[str, dict[str, Any]] = {}
        self._series: dict[str, list[Point]] = {}
        self._events = 0

    def take(self, entry: JournalEntry) -> None:
        """Take note of one message, unless the page knows it."""
        if self._is_behind and _moment(entry.cursor) <= _moment(self.cursor):
            return
        self._is_behind, self.cursor = False, entry.cursor
        data = entry.data
        run_id = data.get("run_id")
        if not isinstance(run_id, str) or self.run_id not in (None, run_id):
            return
        self._events += 1
        event = "result" if entry.kind == "result" else data.get("event")
        if event == "metric":
            if self.run_id is not None:
                self._metric(data)
        elif run_id in self._runs or len(self._runs) < RUNS:
            self._runs.setdefault(run_id, {}).update(_change(event, data))

    def _metric(self, data: Mapping[str, Any]) -> None:
        at, value, name = data.get("timestamp"), data.get("value"), str(data.get("name"))
        if not isinstance(at, int | float) or not isinstance(value, int | float):
            return
        tags = ", ".join(f"{key}={data[key]}" for key in sorted(data) if key not in COMMON | {name})
        series = f"{name}\t{tags}"
        if series not in self._series and len(self._series) >= SERIES:
            return
        points = self._series.setdefault(series, [])
        points.append((at, value))
        if len(points) > 10 * POINTS:
            points[:] = thinned(points)

    def drain(self) -> dict[str, Any]:
        """Everything since the last call, as JSON; empty if there is nothing."""
        if not self._events:
            return {}
        said = {
            "events": self._events,
            "runs": self._runs,
            "series": {name: thinned(points) for name, points in self._series.items()},
        }
        self._runs, self._series, self._events = {}, {}, 0
        return said


def _change(event: Any, data: Mapping[str, Any]) -> dict[str, Any]:
    """What a message says that a page shows of a run."""
    match event:
        case "run_started":
            return {"status": "running", "attempt": data.get("attempt"), "started": data.get("timestamp")}
        case "progress":
            return {"done": data.get("done"), "total": data.get("total"), "message": data.get("message")}
        case "run_retrying":
            return {"status": "retrying"}
        case "result":
            return {"status": _status(data), "over": True}
        case _:
            return {}


def _status(result: Mapping[str, Any]) -> str:
    is_completed = result.get("type") == "experiment_completed"
    return "completed" if is_completed else str(result.get("status") or "failed")


def thinned(points: list[Point]) -> list[Point]:
    """At most `POINTS` of the points, among them the least and the greatest of each stretch."""
    if len(points) <= POINTS:
        return points
    step = -(-len(points) * 2 // POINTS)
    kept: list[Point] = []
    for first in range(0, len(points), step):
        some = points[first : first + step]
        kept += sorted({min(some, key=_value), max(some, key=_value)})
    return kept


def _value(point: Point) -> float:
    return point[1]


# -- how many runs ended --------------------------------------------------------------


@dataclass(slots=True)
class _Bucket:
    completed: int = 0
    failed: int = 0
    seconds: list[float] = field(default_factory=list)


class Throughput:
    """Counts the runs that ended, by minute, for an hour."""

    def __init__(self) -> None:
        self._buckets: dict[int, _Bucket] = {}

    def count(self, entry: JournalEntry) -> None:
        """Count a result."""
        at = int(entry.cursor.partition("-")[0]) // 1_000 // BUCKET_SECONDS
        bucket = self._buckets.setdefault(at, _Bucket())
        for old in [one for one in self._buckets if one <= at - BUCKETS]:
            del self._buckets[old]
        if _status(entry.data) == "completed":
            bucket.completed += 1
        else:
            bucket.failed += 1
        took = entry.data.get("duration")
        if isinstance(took, int | float) and len(bucket.seconds) < DURATIONS:
            bucket.seconds.append(took)

    def minutes(self, now: float) -> dict[str, list[float | None]]:
        """Columns for plots, one value a minute for the last hour: ends by kind, and durations in seconds."""
        last = int(now) // BUCKET_SECONDS
        rows = [(at, self._buckets.get(at, _Bucket())) for at in range(last - BUCKETS + 1, last + 1)]
        return {
            "at": [at * BUCKET_SECONDS for at, _ in rows],
            "completed": [bucket.completed for _, bucket in rows],
            "failed": [bucket.failed for _, bucket in rows],
            "median": [_quantile(bucket.seconds, 10) for _, bucket in rows],
            "most": [_quantile(bucket.seconds, 19) for _, bucket in rows],
        }


def _quantile(seconds: list[float], twentieth: int) -> float | None:
    if len(seconds) < 2:
        return seconds[0] if seconds else None
    return statistics.quantiles(seconds, n=20, method="inclusive")[twentieth - 1]


# -- the journal ----------------------------------------------------------------------


class Hub:
    """Reads the journal for all pages.

    Args:
        ask: calls a function with the store, which may be another one after the server has moved.
    """

    def __init__(self, ask: Callable[[Callable[[Store], Awaitable[Any]]], Awaitable[Any]]) -> None:
        self._ask = ask
        self._pages: set[Gathered] = set()
        self.throughput = Throughput()
        self.cursor = f"{int(time.time() - BUCKETS * BUCKET_SECONDS) * 1_000}-0"
        self.is_connected = True
        self.is_closing = asyncio.Event()
        self.caught_up = asyncio.Event()
        """Is set once the last hour has been read."""

    async def run(self) -> None:
        """Read until cancelled; while Redis is away, try again."""
        while True:
            try:
                entries = await self._ask(lambda store: store.journal.read(self.cursor, READ_WAIT_MS))
            except StoreError as exc:
                if self.is_connected or not isinstance(exc, StoreUnavailableError):
                    log.warning("journal.unavailable", error=str(exc))
                self.is_connected = False
                await asyncio.sleep(RECONNECT_SECONDS)
                continue
            self.is_connected = True
            if len(entries) < READ_AT_ONCE:
                self.caught_up.set()
            for entry in entries:
                self.cursor = entry.cursor
                if entry.kind == "result":
                    self.throughput.count(entry)
                for page in self._pages:
                    page.take(entry)
            await asyncio.sleep(0)

    @contextmanager
    def page(self, run_id: str | None, since: str) -> Iterator[Gathered]:
        """What is gathered until the end of the block for a page that knows all until the cursor `since`."""
        gathered = Gathered(run_id, max(since, self.cursor, key=_moment))
        self._pages.add(gathered)
        try:
            yield gathered
        finally:
            self._pages.discard(gathered)

    @property
    def pages(self) -> int:
        """How many pages are told what happens."""
        return len(self._pages)

    async def missed(self, run_id: str | None, since: str, until: str) -> dict[str, Any]:
        """What a page has missed between two cursors, as JSON."""
        gathered, cursor = Gathered(run_id, since), since
        while _moment(cursor) < _moment(until):
            after = cursor
            entries = await self._ask(lambda store: store.journal.read(after))  # noqa: B023
            for entry in entries:
                if _moment(entry.cursor) <= _moment(until):
                    gathered.take(entry)
                cursor = entry.cursor
            if not entries:
                break
        return gathered.drain()


def _moment(cursor: str) -> tuple[int, int]:
    milliseconds, _, number = cursor.partition("-")
    return int(milliseconds), int(number or 0)
