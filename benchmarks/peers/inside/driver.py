"""The client of one system: reads a request per line, and prints an answer per line.

    python -m benchmarks.peers.inside.driver rq_app

The system's module has a function `client()`, which yields a `Client`.
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
    """Uses a system as a program does that is not a worker."""

    async def fill(self, job: str, arguments: Mapping[str, Any], count: int) -> list[Any]:
        """Enqueue `count` jobs in the fastest way that the system offers; returns their handles."""

    async def fetch(self, handle: Any) -> Any:
        """The job's result, `FAILED` if it has ended without one, or None if it has not ended."""

    async def ask(self, job: str, arguments: Mapping[str, Any]) -> Any:
        """Enqueue one job and wait for its result in the fastest way that the system offers."""


class System(Protocol):
    """The module of a system."""

    def client(self) -> AbstractAsyncContextManager[Client]:
        """A client of the system."""


class Driver:
    """Executes requests; each public method is the verb of a request."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._handles: list[Any] = []

    async def greet(self) -> dict[str, Any]:
        """Answer that the client is connected and has prepared the system."""
        return {}

    async def fill(self, job: str, arguments: dict[str, Any], count: int) -> dict[str, Any]:
        """Enqueue jobs; returns the seconds that this took."""
        begun = time.perf_counter()
        self._handles = await self._client.fill(job, arguments, count)
        return {"seconds": time.perf_counter() - begun}

    async def drain(self, patience_seconds: float, apart_seconds: float) -> dict[str, Any]:
        """Wait for the results of the jobs that were enqueued last.

        The last job is polled first, and the others after it has ended: polling all of them would slow down
        the service that is measured.
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
        """Run jobs with pauses; returns for each the request's time, its result, and the result's time."""
        asked = []
        for _ in range(count):
            await asyncio.sleep(random.uniform(0.5, 1.5) * apart_seconds)
            begun = time.time_ns()
            async with asyncio.timeout(PATIENCE_SECONDS):
                result = await self._client.ask(job, arguments)
            asked.append((begun, result if isinstance(result, int) else len(result), time.time_ns()))
        return {"asked": asked}


async def serve(system: System) -> None:
    """Answer requests until the end of the input."""
    async with system.client() as client:
        driver = Driver(client)
        async for request in _requests():
            try:
                answer = await getattr(driver, request.pop("verb"))(**request)
            except Exception:
                answer = {"error": traceback.format_exc()}
            print(json.dumps(answer), flush=True)


async def _requests() -> AsyncIterator[dict[str, Any]]:
    """The requests, one per line, read without blocking the event loop."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        yield json.loads(line)


if __name__ == "__main__":
    module: Any = importlib.import_module(f"benchmarks.peers.inside.{sys.argv[1]}")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(module))
