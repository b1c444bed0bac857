# mypy: disable-error-code="import-not-found, import-untyped"
"""docket: coroutines in the worker's own process, from a stream."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from docket import Cron, Docket, ExecutionState, Timeout

from benchmarks.peers.inside import asked, jobs, naps

PATIENCE = timedelta(seconds=asked.PATIENCE_SECONDS)
LIMIT = Timeout(timedelta(seconds=asked.DEADLINE_SECONDS))
EVERY_MINUTE = Cron("* * * * *")


async def stamp() -> int:
    """The job of the same name."""
    return jobs.stamp()


async def large(size: int) -> str:
    """The job of the same name."""
    return jobs.large(size)


async def hang(path: str, kind: str, seconds: float, timeout: Timeout = LIMIT) -> int:
    """In a thread: docket's jobs are coroutines, and this one would block its loop."""
    return await asyncio.to_thread(jobs.hang, path, kind, seconds)


async def minute(cron: Cron = EVERY_MINUTE) -> None:
    """One due time of the schedule."""
    jobs.note(asked.CRON_NOTES, "minute")


functions = {"stamp": stamp, "large": large, "nap": naps.nap, "work": naps.work, "hang": hang}
tasks = [*functions.values(), *([minute] if asked.CRON_NOTES else [])]


class Client:
    """A client with docket's client library."""

    def __init__(self, docket: Any) -> None:
        self._docket = docket

    async def fill(self, job: str, arguments: Mapping[str, Any], count: int) -> list[Any]:
        """Enqueue in a few pipelines."""
        calls = (self._docket.call(functions[job])(**arguments) for _ in range(count))
        return list(await self._docket.add_many(calls))

    async def fetch(self, handle: Any) -> Any:
        """Read the execution's hash and the store of results."""
        await handle.sync()
        return await handle.get_result() if handle.state == ExecutionState.COMPLETED else None

    async def ask(self, job: str, arguments: Mapping[str, Any]) -> Any:
        """Wait for docket's message."""
        execution = await self._docket.add(functions[job])(**arguments)
        return await execution.get_result(timeout=PATIENCE)


@asynccontextmanager
async def client() -> AsyncIterator[Client]:
    """The client of this system."""
    async with Docket(name="bench", url=asked.REDIS_URL) as docket:
        yield Client(docket)
