# mypy: disable-error-code="import-not-found, import-untyped"
"""dramatiq: threads in several processes."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import ResultMissing, Results
from dramatiq.results.backends import RedisBackend
from periodiq import PeriodiqMiddleware, cron

from benchmarks.peers.inside import asked, jobs

broker = RedisBroker(url=asked.REDIS_URL)
results = RedisBackend(url=asked.REDIS_URL)
broker.add_middleware(Results(backend=results))
broker.add_middleware(PeriodiqMiddleware())
dramatiq.set_broker(broker)

actors = {
    one.__name__: dramatiq.actor(one, actor_name=one.__name__, store_results=True)
    for one in (jobs.stamp, jobs.large, jobs.nap, jobs.work)
}
limit_ms = asked.DEADLINE_SECONDS * 1_000
actors["hang"] = dramatiq.actor(jobs.hang, actor_name="hang", time_limit=limit_ms, max_retries=0)


def minute() -> None:
    """One due time of the schedule."""
    jobs.note(asked.CRON_NOTES, "minute")


if asked.CRON_NOTES:
    dramatiq.actor(minute, periodic=cron("* * * * *"))


class Client:
    """A client with dramatiq's blocking client library."""

    async def fill(self, job: str, arguments: Mapping[str, Any], count: int) -> list[Any]:
        """Enqueue one after the other."""
        return [actors[job].send(**arguments) for _ in range(count)]

    async def fetch(self, handle: Any) -> Any:
        """Read the result backend."""
        try:
            return handle.get_result(backend=results)
        except ResultMissing:
            return None

    async def ask(self, job: str, arguments: Mapping[str, Any]) -> Any:
        """Block on the result's list."""
        message = actors[job].send(**arguments)
        return message.get_result(backend=results, block=True, timeout=asked.PATIENCE_SECONDS * 1_000)


@asynccontextmanager
async def client() -> AsyncIterator[Client]:
    """The client of this system."""
    yield Client()
