# mypy: disable-error-code="import-not-found, import-untyped"
"""SAQ: coroutines in the worker's own process."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from saq import CronJob, Queue

from benchmarks.peers.inside import asked, jobs, naps

POLL_SECONDS = 0.001
queue = Queue.from_url(asked.REDIS_URL)


async def stamp(ctx: Any) -> int:
    """The job of the same name."""
    return jobs.stamp()


async def large(ctx: Any, *, size: int) -> str:
    """The job of the same name."""
    return jobs.large(size)


async def nap(ctx: Any, *, seconds: float) -> str:
    """The job of the same name, as a coroutine."""
    return await naps.nap(seconds)


async def work(ctx: Any, *, path: str, seconds: float) -> int:
    """The job of the same name, as a coroutine."""
    return await naps.work(path, seconds)


def hang(ctx: Any, *, path: str, kind: str, seconds: float) -> int:
    """In a thread, as SAQ runs functions that are not coroutines."""
    return jobs.hang(path, kind, seconds)


async def second(ctx: Any) -> None:
    """One due time of the schedule."""
    jobs.note(asked.CRON_NOTES, "second")


async def minute(ctx: Any) -> None:
    """One due time of the schedule."""
    jobs.note(asked.CRON_NOTES, "minute")


settings = {"queue": queue, "functions": [stamp, large, nap, work, hang]}
if asked.SLOTS:
    settings["concurrency"] = asked.SLOTS
if asked.CRON_NOTES:
    settings["cron_jobs"] = [CronJob(minute, cron="* * * * *"), CronJob(second, cron="* * * * * *")]


class Client:
    """A client with SAQ's client library."""

    async def fill(self, job: str, arguments: Mapping[str, Any], count: int) -> list[Any]:
        """Enqueue several at the same time, as SAQ's own benchmark does."""
        options = {"timeout": asked.DEADLINE_SECONDS} if job == "hang" else {}
        several = asyncio.Semaphore(20)

        async def enqueue() -> Any:
            async with several:
                return await queue.enqueue(job, **options, **arguments)

        return list(await asyncio.gather(*(enqueue() for _ in range(count))))

    async def fetch(self, handle: Any) -> Any:
        """Read the job's key.

        A starting worker aborts jobs as stuck that another worker has taken and not yet marked.  This fails
        some of many queued jobs if two workers start at the same time.
        """
        await handle.refresh()
        if handle.status in ("aborted", "aborting", "failed"):
            return asked.FAILED
        return handle.result if handle.status == "complete" else None

    async def ask(self, job: str, arguments: Mapping[str, Any]) -> Any:
        """Poll, as SAQ does by default."""
        return await queue.apply(job, poll_interval=POLL_SECONDS, **arguments)


@asynccontextmanager
async def client() -> AsyncIterator[Client]:
    """The client of this system."""
    await queue.connect()
    yield Client()
    await queue.disconnect()
