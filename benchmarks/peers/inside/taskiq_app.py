# mypy: disable-error-code="import-not-found, import-untyped, misc, untyped-decorator"
"""taskiq: from a list, coroutines in the worker's own process; or from a stream, in a pool of processes."""

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from taskiq import TaskiqScheduler
from taskiq.schedule_sources import LabelScheduleSource
from taskiq.serializers import ORJSONSerializer
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend, RedisStreamBroker

from benchmarks.peers.inside import asked, jobs, naps

CHECK_SECONDS = 0.001
KEPT_SECONDS = 600
from_stream = os.environ.get("TASKIQ_BROKER") == "stream"
broker = (RedisStreamBroker if from_stream else ListQueueBroker)(url=asked.REDIS_URL)
broker = broker.with_result_backend(
    RedisAsyncResultBackend(redis_url=asked.REDIS_URL, result_ex_time=KEPT_SECONDS)
)
broker = broker.with_serializer(ORJSONSerializer())
scheduler = TaskiqScheduler(broker, [LabelScheduleSource(broker)])


async def stamp() -> int:
    """The job of the same name."""
    return jobs.stamp()


async def large(size: int) -> str:
    """The job of the same name."""
    return jobs.large(size)


if from_stream:
    functions = {"stamp": jobs.stamp, "large": jobs.large, "nap": jobs.nap, "work": jobs.work}
else:
    functions = {"stamp": stamp, "large": large, "nap": naps.nap, "work": naps.work}
tasks = {name: broker.register_task(one, name) for name, one in functions.items()}
tasks["hang"] = broker.register_task(jobs.hang, "hang", timeout=asked.DEADLINE_SECONDS)
if asked.CRON_NOTES:
    schedule = {"cron": "* * * * *", "args": [asked.CRON_NOTES, "minute"]}
    tasks["note"] = broker.register_task(jobs.note, "note", schedule=[schedule])


class Client:
    """A client with taskiq's client library."""

    async def fill(self, job: str, arguments: Mapping[str, Any], count: int) -> list[Any]:
        """Enqueue one after the other."""
        return [await tasks[job].kiq(**arguments) for _ in range(count)]

    async def fetch(self, handle: Any) -> Any:
        """Read the result backend."""
        if not await handle.is_ready():
            return None
        return (await handle.get_result()).return_value

    async def ask(self, job: str, arguments: Mapping[str, Any]) -> Any:
        """Poll, as taskiq does."""
        handle = await tasks[job].kiq(**arguments)
        result = await handle.wait_result(check_interval=CHECK_SECONDS, timeout=asked.PATIENCE_SECONDS)
        return result.return_value


@asynccontextmanager
async def client() -> AsyncIterator[Client]:
    """The client of this system."""
    await broker.startup()
    yield Client()
    await broker.shutdown()
