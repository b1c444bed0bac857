# mypy: disable-error-code="import-not-found, import-untyped, misc, untyped-decorator"
"""streaQ: coroutines in the worker's own process, from a stream."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from streaq import Worker

from benchmarks.peers.inside import asked, jobs, naps

tuned = {} if asked.DEFAULTS else {"concurrency": asked.SLOTS or 32}
worker = Worker(redis_url=asked.REDIS_URL, **tuned)
quiet = {} if asked.DEFAULTS else {"silent": True}


@worker.task(**quiet)
async def stamp() -> int:
    """The job of the same name."""
    return jobs.stamp()


@worker.task(**quiet)
async def large(size: int) -> str:
    """The job of the same name."""
    return jobs.large(size)


@worker.task(**quiet)
async def nap(seconds: float) -> str:
    """The job of the same name, as a coroutine."""
    return await naps.nap(seconds)


@worker.task(**quiet)
async def work(path: str, seconds: float) -> int:
    """The job of the same name, as a coroutine."""
    return await naps.work(path, seconds)


@worker.task(timeout=asked.DEADLINE_SECONDS, max_tries=1)
def hang(path: str, kind: str, seconds: float) -> int:
    """In a thread, as streaQ runs functions that are not coroutines."""
    return jobs.hang(path, kind, seconds)


if asked.CRON_NOTES:

    @worker.cron("* * * * * * *", silent=True)
    async def second() -> None:
        """One due time of the schedule."""
        jobs.note(asked.CRON_NOTES, "second")

    @worker.cron("* * * * *", silent=True)
    async def minute() -> None:
        """One due time of the schedule."""
        jobs.note(asked.CRON_NOTES, "minute")


class Client:
    """A client with streaQ's client library."""

    async def fill(self, job: str, arguments: Mapping[str, Any], count: int) -> list[Any]:
        """Enqueue in one pipeline."""
        handles = [worker.registry[job].enqueue(**arguments) for _ in range(count)]
        await worker.enqueue_many(handles)
        return handles

    async def fetch(self, handle: Any) -> Any:
        """Read the result's key; `result()` would subscribe to a channel for each."""
        raw = await worker.redis.get(worker.results_key + handle.id)
        return raw and (await worker.deserialize(raw))["r"]

    async def ask(self, job: str, arguments: Mapping[str, Any]) -> Any:
        """Wait for streaQ's message."""
        handle = await worker.registry[job].enqueue(**arguments)
        return (await handle.result(asked.PATIENCE_SECONDS)).result


@asynccontextmanager
async def client() -> AsyncIterator[Client]:
    """The client of this system."""
    async with worker:
        yield Client()
