"""The bare skeleton: reads a stream, writes the start, calls a warm child, and writes the end.

It has no full record, no retries, no limits and no events.  The difference of a service's cost to it is the
cost of these.  It uses redis-py and awaits each step.  Run as a program, it is the worker.
"""

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from benchmarks.peers.inside import asked, jobs

STREAM, GROUP, DONE = "skeleton", "workers", "skeleton:done"
CHILDREN = 2
READ_AT_ONCE = 2 * CHILDREN
FINISH = """
redis.call('HSET', KEYS[2], 'status', 'completed', 'result', ARGV[3])
redis.call('PEXPIRE', KEYS[2], 600000)
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
redis.call('XDEL', KEYS[1], ARGV[2])
redis.call('PUBLISH', ARGV[4], ARGV[5])
"""


# -- the client -----------------------------------------------------------------------


class Client:
    """XADD, and a subscription to results."""

    def __init__(self, redis: Any, done: Any) -> None:
        self._redis = redis
        self._done = done

    async def fill(self, job: str, arguments: Mapping[str, Any], count: int) -> list[Any]:
        """Enqueue in one pipeline."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for _ in range(count):
                pipe.xadd(STREAM, {"job": job, "arguments": json.dumps(arguments)})
            return list(await pipe.execute())

    async def fetch(self, handle: str) -> Any:
        """Read the job's hash."""
        result = await self._redis.hget(f"{STREAM}:{handle}", "result")
        return result and json.loads(result)

    async def ask(self, job: str, arguments: Mapping[str, Any]) -> Any:
        """Wait for the message."""
        [handle] = await self.fill(job, arguments, 1)
        while True:
            message = await self._done.get_message(ignore_subscribe_messages=True, timeout=None)
            if message is not None:
                said = json.loads(message["data"])
                if said["id"] == handle:
                    return said["result"]


@asynccontextmanager
async def client() -> AsyncIterator[Client]:
    """The client."""
    redis: Any = Redis.from_url(asked.REDIS_URL, decode_responses=True, socket_timeout=None)
    await make_group(redis)
    async with redis, redis.pubsub() as done:
        await done.subscribe(DONE)
        yield Client(redis, done)


async def make_group(redis: Any) -> None:
    """Create the stream and its group, if they do not exist."""
    with suppress(ResponseError):
        await redis.xgroup_create(STREAM, GROUP, id="0", mkstream=True)


# -- the worker -----------------------------------------------------------------------


def serve(sock: socket.socket) -> None:
    """The child: answer one call after the other."""
    while data := sock.recv(65_536):
        call = json.loads(data)
        sock.sendall(json.dumps(getattr(jobs, call["job"])(**call["arguments"])).encode() + b"\n")


async def warm_child() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Our end of the socket pair to a forked child."""
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        try:
            ours.close()
            serve(theirs)
        finally:
            os._exit(0)
    theirs.close()
    return await asyncio.open_connection(sock=ours, limit=2**24)


async def perform(redis: Any, finish: Any, orders: asyncio.Queue[Any], child: Any) -> None:
    """Run jobs from the queue, awaiting each step."""
    reader, writer = child
    while True:
        entry, order = await orders.get()
        key = f"{STREAM}:{entry}"
        await redis.hset(key, mapping={"status": "running", "job": order["job"]})
        arguments = json.loads(order["arguments"])
        writer.write(json.dumps({"job": order["job"], "arguments": arguments}).encode())
        result = (await reader.readline()).decode()
        said = json.dumps({"id": entry, "result": json.loads(result) if len(result) < 1_000 else ""})
        await finish(keys=[STREAM, key], args=[GROUP, entry, result, DONE, said])


async def main() -> None:
    """Read the stream, no more than fits into the queue."""
    children = [await warm_child() for _ in range(CHILDREN)]
    redis: Any = Redis.from_url(asked.REDIS_URL, decode_responses=True, socket_timeout=None)
    await make_group(redis)
    finish = redis.register_script(FINISH)
    orders: asyncio.Queue[Any] = asyncio.Queue(READ_AT_ONCE)
    async with asyncio.TaskGroup() as tasks:
        for child in children:
            tasks.create_task(perform(redis, finish, orders, child))
        while True:
            found = await redis.xreadgroup(GROUP, "one", {STREAM: ">"}, count=READ_AT_ONCE, block=0)
            for order in found[0][1]:
                await orders.put(order)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(asyncio.run(main()))
