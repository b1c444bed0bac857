# mypy: disable-error-code="import-not-found, import-untyped"
"""celery: a pool of processes that are reused."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from celery import Celery
from celery.schedules import crontab

from benchmarks.peers.inside import asked, jobs

app = Celery("bench", broker=asked.REDIS_URL, backend=asked.REDIS_URL)
if not asked.DEFAULTS:
    app.conf.worker_prefetch_multiplier = 128
tasks = {
    one.__name__: app.task(one, name=one.__name__)
    for one in (jobs.stamp, jobs.large, jobs.nap, jobs.work, jobs.hang, jobs.note)
}
if asked.CRON_NOTES:
    args = (asked.CRON_NOTES, "minute")
    app.conf.beat_schedule = {"minute": {"task": "note", "schedule": crontab(), "args": args}}


class Client:
    """A client with celery's blocking client library."""

    async def fill(self, job: str, arguments: Mapping[str, Any], count: int) -> list[Any]:
        """Enqueue one after the other; the only other way, groups, costs more."""
        options = {"time_limit": asked.DEADLINE_SECONDS} if job == "hang" else {}
        return [tasks[job].apply_async(kwargs=dict(arguments), **options) for _ in range(count)]

    async def fetch(self, handle: Any) -> Any:
        """Read the result backend."""
        return handle.result if handle.state == "SUCCESS" else None

    async def ask(self, job: str, arguments: Mapping[str, Any]) -> Any:
        """Wait for the backend's message."""
        return tasks[job].delay(**arguments).get(timeout=asked.PATIENCE_SECONDS)


@asynccontextmanager
async def client() -> AsyncIterator[Client]:
    """The client of this system."""
    yield Client()
