"""The executor, used as other services do: experiments in Redis, PUBLISH, and result messages.

A PUBLISH reaches only current subscribers.  Jobs that are queued before the service starts are therefore
written to the executor's queue, where a PUBLISH would have put them.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.peers.inside import asked
from benchmarks.peers.inside.fullsend_tools import TOOLS
from services.executor.artifacts import open_blobs
from services.executor.store import Order, Retention, Store
from shared import keys
from shared.connection import connect, connect_blocking

UNHEARD_SECONDS = 0.01


class Client:
    """Writes and reads what another service would."""

    def __init__(self, redis: Any, store: Store, heard: Any) -> None:
        self._redis = redis
        self._store = store
        self._heard = heard
        self._asked = 0

    async def fill(self, job: str, arguments: Mapping[str, Any], count: int) -> list[Any]:
        """By PUBLISH if there is a subscriber, otherwise in the queue."""
        messages = [self._message(job, arguments) for _ in range(count)]
        async with self._redis.pipeline(transaction=False) as pipe:
            for one in messages:
                pipe.publish(keys.EXECUTE_NOW, json.dumps(one))
            heard = await pipe.execute()
        if not any(heard):
            return [await self._enqueue(one) for one in messages]
        return [(job, one["request_id"]) for one in messages]

    async def _enqueue(self, message: dict[str, Any]) -> tuple[str, str]:
        job, request_id = message["experiment_id"], message["request_id"]
        order = Order(job, "enqueue", params=message["params"], request_id=request_id)
        await self._store.queue.enqueue(order)
        return job, request_id

    def _message(self, job: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        self._asked += 1
        return {"experiment_id": job, "request_id": f"r{self._asked}", "params": dict(arguments)}

    async def fetch(self, handle: tuple[str, str]) -> Any:
        """Read the run's record."""
        job, request_id = handle
        timestamp = await self._redis.get(keys.request(job, request_id))
        return timestamp and await self._result(keys.run(f"{job}:{timestamp}"))

    async def _result(self, record: str) -> Any:
        result = await self._redis.hget(record, "result")
        if result is None:
            return None
        if not result.startswith("cas://"):
            return json.loads(result)
        return json.loads(open_blobs("artifacts").read(result.removeprefix("cas://")))

    async def ask(self, job: str, arguments: Mapping[str, Any]) -> Any:
        """PUBLISH, and wait for the message on the result channel."""
        message = self._message(job, arguments)
        while not await self._redis.publish(keys.EXECUTE_NOW, json.dumps(message)):
            await asyncio.sleep(UNHEARD_SECONDS)
        while True:
            said = await self._heard.get_message(ignore_subscribe_messages=True, timeout=None)
            result = json.loads(said["data"]) if said is not None else {}
            if result.get("request_id") == message["request_id"]:
                return await self._answer(result)

    async def _answer(self, result: dict[str, Any]) -> Any:
        value = result["result_summary"]["value"]
        if isinstance(value, int):
            return value
        return await self._result(keys.run(result["run_id"]))


@asynccontextmanager
async def client() -> AsyncIterator[Client]:
    """The client; the experiments have been written."""
    redis: Any = connect(asked.REDIS_URL)
    patient: Any = connect_blocking(asked.REDIS_URL)
    await _publish(redis)
    store = Store.on(redis, patient, Retention(record_ms=600_000, metrics=1, journal=1, log_lines=1))
    async with redis, patient, patient.pubsub() as heard:
        await heard.subscribe(keys.RESULTS)
        yield Client(redis, store, heard)


async def _publish(redis: Any) -> None:
    """Write the experiments, and the schedules if they are wanted."""
    limited = {"timeout_seconds": asked.DEADLINE_SECONDS, "max_attempts": 1}
    for tool in TOOLS:
        members = {"tool": tool, **(limited if tool == "hang" else {})}
        await redis.hset(keys.experiment(tool), mapping=members)
    schedules = {"minute": "* * * * *", "second": "* * * * * *"} if asked.CRON_NOTES else {}
    for word, cron in schedules.items():
        params = json.dumps({"path": asked.CRON_NOTES, "word": word})
        await redis.hset(keys.experiment(word), mapping={"tool": "note", "params": params})
        await redis.set(keys.schedule(word), cron)
