"""Speaks for one system: reads a request per line, asks the system, prints an answer per line.

    python -m benchmarks.peers.inside.driver rq_app

Its module has `client()`, which yields something with `fill`, `fetch` and `ask`.
"""

import asyncio
import contextlib
import importlib
import json
import random
import sys
import time
import traceback
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from benchmarks.peers.inside.asked import PATIENCE_SECONDS


class Client(Protocol):
    """How a program that is no worker uses the system."""

    async def fill(self, job: str, arguments: Mapping[str, Any], count: int) -> list[Any]:
        """Enqueue so many jobs, as fast as the system offers; a handle of each."""

    async def fetch(self, handle: Any) -> Any:
        """The job's result, `FAILED` if there never will be one, or None if there is none yet."""

    async def ask(self, job: str, arguments: Mapping[str, Any]) -> Any:
        """Enqueue one and wait for its result in the quickest way that the system has."""


class System(Protocol):
    """A module that knows a system."""

    def client(self) -> AbstractAsyncContextManager[Client]:
        """Something to use it with."""


class Driver:
    """Does what is asked for; each public method is a verb."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._handles: list[Any] = []

    async def greet(self) -> dict[str, Any]:
        """Say that the client is connected, and what it prepares is there."""
        return {}

    async def fill(self, job: str, arguments: dict[str, Any], count: int) -> dict[str, Any]:
        """Enqueue jobs; how long that took."""
        begun = time.perf_counter()
        self._handles = await self._client.fill(job, arguments, count)
        return {"seconds": time.perf_counter() - begun}

    async def drain(self, patience_seconds: float, apart_seconds: float) -> dict[str, Any]:
        """Wait for the results of all that were enqueued last.

        Only the last one is looked for until it is there: whoever asks all the
        time for everything slows down what is measured.
        """
        until = time.monotonic() + patience_seconds
        last = await self._wait_for(self._handles[-1], until, apart_seconds)
        seen_ns = time.time_ns()
        results = [await self._wait_for(one, until, apart_seconds) for one in self._handles[:-1]]
        return {"results": [*results, last], "seen_ns": seen_ns}

    async def _wait_for(self, handle: Any, until: float, apart_seconds: float) -> Any:
        while (result := await self._client.fetch(handle)) is None:
            if time.monotonic() > until:
                return None
            await asyncio.sleep(apart_seconds)
        return result

    async def ask(
        self, job: str, arguments: dict[str, Any], count: int, apart_seconds: float
    ) -> dict[str, Any]:
        """One job after the other, with pauses; when each was asked for, its result, when that was known."""
        asked = []
        for _ in range(count):
            await asyncio.sleep(random.uniform(0.5, 1.5) * apart_seconds)
            begun = time.time_ns()
            async with asyncio.timeout(PATIENCE_SECONDS):
                result = await self._client.ask(job, arguments)
            asked.append((begun, result if isinstance(result, int) else len(result), time.time_ns()))
        return {"asked": asked}


async def serve(system: System) -> None:
    """Answer requests until there are no more."""
    async with system.client() as client:
        driver = Driver(client)
        async for request in _requests():
            try:
                answer = await getattr(driver, request.pop("verb"))(**request)
            except Exception:
                answer = {"error": traceback.format_exc()}
            print(json.dumps(answer), flush=True)


async def _requests() -> AsyncIterator[dict[str, Any]]:
    """One per line, while the loop goes on turning."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        yield json.loads(line)


if __name__ == "__main__":
    module: Any = importlib.import_module(f"benchmarks.peers.inside.{sys.argv[1]}")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(module))
