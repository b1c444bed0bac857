"""Schedules and tools: what there is, and what is wrong with it."""

import time

from starlette.requests import Request
from starlette.responses import Response

from services.executor.scheduling.cron import Cron
from services.executor.store import Store
from services.operations.registered_tools import Registered, all_registered, signature
from services.operations.schedule_rows import ScheduleRow, read_all_schedules
from services.web.rendering import page

DAY_MS = 86_400_000
MARKS = 300
"""Due times that are drawn of one schedule."""


async def schedules(request: Request) -> Response:
    """All schedules, with their due times of the next 24 hours."""
    rows: list[ScheduleRow] = await request.app.state.access.ask(read_all_schedules)
    now_ms = round(time.time() * 1_000)
    return page(request, "schedules.html", lanes=[(one, _marks(one, now_ms)) for one in rows])


def _marks(row: ScheduleRow, now_ms: int) -> list[float]:
    """Due times, in thousandths of the next 24 hours."""
    if row.state != "active":
        return []
    cron = Cron.parse(row.cron, row.timezone, row.experiment_id)
    found: list[float] = []
    due_ms = cron.next_after(now_ms)
    while due_ms is not None and due_ms < now_ms + DAY_MS and len(found) < MARKS:
        found.append(round((due_ms - now_ms) / DAY_MS * 1_000, 1))
        due_ms = cron.next_after(due_ms)
    return found


async def tools(request: Request) -> Response:
    """All registered tools, and the experiments that use each."""

    async def look(store: Store) -> tuple[list[Registered], dict[str, list[str]]]:
        users: dict[str, list[str]] = {}
        async for name, stored in store.experiments.scan():
            if stored.experiment is not None:
                users.setdefault(stored.experiment.tool.partition("@")[0], []).append(name)
        return await all_registered(store), users

    found, users = await request.app.state.access.ask(look)
    return page(request, "tools.html", tools=found, users=users, signature=signature)
