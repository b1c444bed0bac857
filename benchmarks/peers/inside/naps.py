"""The jobs that wait, for systems whose jobs are coroutines."""

import asyncio
import time

from benchmarks.peers.inside import jobs


async def nap(seconds: float) -> str:
    """Sleep as something does that waits for others; when that began and ended."""
    begun = time.time_ns()
    await asyncio.sleep(seconds)
    return f"{begun} {time.time_ns()}"


async def work(path: str, seconds: float) -> int:
    """Sleep, and let it be known that it began and that it ended."""
    jobs.note(path, "start")
    await asyncio.sleep(seconds)
    jobs.note(path, "end")
    return time.time_ns()
