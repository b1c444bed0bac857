# mypy: disable-error-code="import-not-found, import-untyped"
"""huey: a pool of processes; a job that a worker has taken is no longer in Redis."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from huey import RedisHuey, crontab

from benchmarks.peers.inside import asked, jobs

huey = RedisHuey("bench", url=asked.REDIS_URL, notify_result=True)
tasks = {one.__name__: huey.task()(one) for one in (jobs.stamp, jobs.large, jobs.nap, jobs.work)}
tasks["hang"] = huey.task(timeout=asked.DEADLINE_SECONDS)(jobs.hang)


def minute() -> None:
    """One due time of the schedule."""
    jobs.note(asked.CRON_NOTES, "minute")


if asked.CRON_NOTES:
    huey.periodic_task(crontab())(minute)


class Client:
    """A client with huey's blocking client library."""

    async def fill(self, job: str, arguments: Mapping[str, Any], count: int) -> list[Any]:
        """Enqueue one after the other."""
        return [tasks[job](**arguments) for _ in range(count)]

    async def fetch(self, handle: Any) -> Any:
        """Read the hash of results."""
        return handle.get()

    async def ask(self, job: str, arguments: Mapping[str, Any]) -> Any:
        """Block on the result's list (`notify_result`)."""
        return tasks[job](**arguments).get(blocking=True, timeout=asked.PATIENCE_SECONDS)


@asynccontextmanager
async def client() -> AsyncIterator[Client]:
    """The client of this system."""
    yield Client()
