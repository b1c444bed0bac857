# mypy: disable-error-code="import-not-found, import-untyped, misc"
"""arq: coroutines in the worker's own process, found by polling."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from arq import create_pool, cron, func
from arq.connections import RedisSettings

from benchmarks.peers.inside import asked, jobs, naps

POLL_SECONDS = 0.001


async def stamp(ctx: Any) -> int:
    """The job of the same name."""
    return jobs.stamp()


async def large(ctx: Any, size: int) -> str:
    """The job of the same name."""
    return jobs.large(size)


async def nap(ctx: Any, seconds: float) -> str:
    """The job of the same name, as a coroutine."""
    return await naps.nap(seconds)


async def work(ctx: Any, path: str, seconds: float) -> int:
    """The job of the same name, as a coroutine."""
    return await naps.work(path, seconds)


async def hang(ctx: Any, path: str, kind: str, seconds: float) -> int:
    """In a thread, as arq's documentation recommends for blocking functions."""
    return await asyncio.to_thread(jobs.hang, path, kind, seconds)


async def second(ctx: Any) -> None:
    """One due time of the schedule."""
    jobs.note(asked.CRON_NOTES, "second")


async def minute(ctx: Any) -> None:
    """One due time of the schedule."""
    jobs.note(asked.CRON_NOTES, "minute")


class WorkerSettings:
    """The settings that `arq` reads."""

    redis_settings = RedisSettings.from_dsn(asked.REDIS_URL)
    functions = (stamp, large, nap, work, func(hang, timeout=asked.DEADLINE_SECONDS, max_tries=1))


if not asked.DEFAULTS:
    WorkerSettings.poll_delay = 0.01  # type: ignore[attr-defined]
    WorkerSettings.max_jobs = asked.SLOTS or 32  # type: ignore[attr-defined]
    WorkerSettings.log_results = False  # type: ignore[attr-defined]
if asked.CRON_NOTES:
    WorkerSettings.cron_jobs = (  # type: ignore[attr-defined]
        cron(second, second=set(range(60)), microsecond=0),
        cron(minute, second=0, microsecond=0),
    )
silent = {"version": 1, "disable_existing_loggers": False, "loggers": {"arq": {"level": "WARNING"}}}


class Client:
    """A client with arq's client library."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    async def fill(self, job: str, arguments: Mapping[str, Any], count: int) -> list[Any]:
        """Enqueue several at the same time."""
        several = asyncio.Semaphore(20)

        async def enqueue() -> Any:
            async with several:
                return await self._pool.enqueue_job(job, **arguments)

        return list(await asyncio.gather(*(enqueue() for _ in range(count))))

    async def fetch(self, handle: Any) -> Any:
        """Read the result's key."""
        info = await handle.result_info()
        return info and info.result

    async def ask(self, job: str, arguments: Mapping[str, Any]) -> Any:
        """Poll, as arq does."""
        handle = await self._pool.enqueue_job(job, **arguments)
        return await handle.result(timeout=asked.PATIENCE_SECONDS, poll_delay=POLL_SECONDS)


@asynccontextmanager
async def client() -> AsyncIterator[Client]:
    """The client of this system."""
    pool = await create_pool(WorkerSettings.redis_settings)
    yield Client(pool)
    await pool.aclose()
