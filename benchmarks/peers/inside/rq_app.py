# mypy: disable-error-code="import-not-found, import-untyped"
"""rq: a process is forked for each job."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from redis import Redis
from rq import Queue
from rq.job import Job

from benchmarks.peers.inside import asked, jobs


class Client:
    """A client with rq's blocking client library."""

    def __init__(self) -> None:
        self._queue = Queue(connection=Redis.from_url(asked.REDIS_URL))

    async def fill(self, job: str, arguments: Mapping[str, Any], count: int) -> list[Any]:
        """Enqueue in one pipeline."""
        function = getattr(jobs, job)
        timeout = asked.DEADLINE_SECONDS if job == "hang" else None
        data = [
            Queue.prepare_data(function, kwargs=dict(arguments), timeout=timeout, description=job)
            for _ in range(count)
        ]
        return list(self._queue.enqueue_many(data))

    async def fetch(self, handle: Job) -> Any:
        """Read the stream of the job's results."""
        result = handle.latest_result()
        return result and result.return_value

    async def ask(self, job: str, arguments: Mapping[str, Any]) -> Any:
        """Block on that stream."""
        handle = self._queue.enqueue(getattr(jobs, job), kwargs=dict(arguments))
        result = handle.latest_result(timeout=asked.PATIENCE_SECONDS)
        assert result is not None, "it came in time"
        return result.return_value


@asynccontextmanager
async def client() -> AsyncIterator[Client]:
    """The client of this system."""
    yield Client()
