"""The waiting jobs as coroutines."""

import asyncio
import time

from benchmarks.peers.inside import jobs


async def nap(seconds: float) -> str:
    """Sleep; returns the times of the begin and the end."""
    begun = time.time_ns()
    await asyncio.sleep(seconds)
    return f"{begun} {time.time_ns()}"


async def work(path: str, seconds: float) -> int:
    """Sleep, and note the begin and the end."""
    jobs.note(path, "start")
    await asyncio.sleep(seconds)
    jobs.note(path, "end")
    return time.time_ns()
