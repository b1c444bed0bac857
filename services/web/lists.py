"""Pages with many runs: the overview and the list of runs."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from services.executor.store import ENDED, Depth, Store
from services.operations.run_records import Record, recent_runs, status_of
from services.web.rendering import page, query
from services.web.run_page import RunRow

STATUSES = ("queued", "running", "retrying", "completed", "failed", "timeout", "cancelled", "lost")
OPEN = ("queued", "running", "retrying")
FAILED = ("failed", "timeout", "lost")
RECENT = 200
"""Runs that the overview looks at."""

SEARCHED = 10_000
"""Runs among which filters look."""
PAGE_RUNS = 50
FAILURES = 8


@dataclass(frozen=True, slots=True)
class Failure:
    """Recent failures with one cause: how many, and the newest."""

    cause: str
    count: int
    newest: RunRow


@dataclass(frozen=True, slots=True)
class Now:
    """What is going on: orders and workers."""

    depth: Depth
    oldest_seconds: float
    alive: list[str]
    listening: list[str]
    silent: dict[str, float]


async def overview(request: Request) -> Response:
    """What waits and runs, what failed, and which workers there are."""

    async def look(store: Store) -> tuple[Now, list[Record]]:
        depth, oldest, alive, listening, silent, runs = await asyncio.gather(
            store.queue.depth(),
            store.queue.oldest_seconds(),
            store.workers.alive(),
            store.workers.listening(),
            store.workers.silent(),
            recent_runs(store, None, RECENT),
        )
        return Now(depth, oldest, alive, listening, silent), runs

    now, records = await request.app.state.access.ask(look)
    rows = [RunRow.of(record) for record in records]
    return page(
        request,
        "overview.html",
        now=now,
        open_runs=[row for row in rows if row.status in OPEN][:PAGE_RUNS],
        ended=[row for row in rows if row.status not in OPEN][:FAILURES],
        failures=_by_cause([row for row in rows if row.status in FAILED]),
    )


def _by_cause(rows: list[RunRow]) -> list[Failure]:
    counts = Counter(row.outcome for row in rows)
    newest = {row.outcome: row for row in reversed(rows)}
    return [
        Failure(cause, counts[cause], newest[cause]) for cause in list(dict.fromkeys(r.outcome for r in rows))
    ][:FAILURES]


async def throughput(request: Request) -> Response:
    """The runs that ended in the last hour, by minute, for plots."""
    return JSONResponse(request.app.state.hub.throughput.minutes(time.time()))


async def runs(request: Request) -> Response:
    """The list of runs, filtered and by page."""
    asked = query(request)
    first = int(asked["first"]) if asked.get("first", "").isdecimal() else 0
    # One more than is shown tells whether more follow; filters look at many records.
    limit = SEARCHED if _filters(asked) else min(SEARCHED, first + PAGE_RUNS + 1)
    records = await request.app.state.access.ask(
        lambda store: recent_runs(store, asked.get("experiment"), limit, asked.get("status"))
    )
    found = [record for record in records if _fits(record, asked)]
    return page(
        request,
        "runs.html",
        runs=[RunRow.of(record) for record in found[first : first + PAGE_RUNS]],
        asked=asked,
        statuses=STATUSES,
        first=first,
        count=len(found),
        is_whole=len(records) < limit,
        size=PAGE_RUNS,
        filters={name: value for name, value in asked.items() if name != "first"},
    )


def _filters(asked: Mapping[str, str]) -> bool:
    is_indexed = "experiment" not in asked and asked.get("status") in ENDED
    return bool(asked.keys() - {"experiment", "first"} - ({"status"} if is_indexed else set()))


def _fits(record: Record, asked: Mapping[str, str]) -> bool:
    wanted = {name: asked[name] for name in ("tool", "trigger") if name in asked}
    if any(record.get(name) != value for name, value in wanted.items()):
        return False
    if "status" in asked and status_of(record) != asked["status"]:
        return False
    return asked.get("text", "").lower() in json.dumps(record, ensure_ascii=False).lower()
