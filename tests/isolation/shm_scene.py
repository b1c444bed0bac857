"""Runs that leave shared memory behind, and a neighbour that has some.

Run by path as some user; prints a JSON object.
"""

import asyncio
import json
import sys
import tempfile
import time
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

from services.executor.isolation.calls import Level, Returned, TimedOut
from tests.isolation.bench import Bench, bench

SHM = Path("/dev/shm")
LEAVING = """
    import multiprocessing as mp, os, time
    from multiprocessing import shared_memory
    KEPT = []
    def work(x): time.sleep(x)
    def run(hang=False):
        block = shared_memory.SharedMemory(create=True, size=1_000_000)
        block.buf[:] = b"1" * len(block.buf)
        lock = mp.get_context("spawn").Lock()
        KEPT.append(lock)
        print(block._name, flush=True)
        print(lock._semlock.name.replace("/", "/sem."), flush=True)
        if hang:
            pool = mp.get_context("spawn").Pool(2)
            pool.map_async(work, [1000, 1000])
            print("hanging", flush=True)
            time.sleep(1000)
        return os.getpid()
"""


def left(own: Bench) -> list[str]:
    """What the runs have named that is in /dev/shm; others of this machine have files there as well."""
    there = {path.name for path in SHM.iterdir()}
    return [line for line in own.lines() if line.removeprefix("/") in there]


async def main() -> dict[str, Any]:
    """What was left by runs that returned and by those that were ended; whether the neighbour was spared."""
    neighbour = shared_memory.SharedMemory(create=True, size=1000)
    with tempfile.TemporaryDirectory() as folder:
        async with bench(Path(folder)) as own:
            tool = own.tool(LEAVING)
            returned = [await own.run(tool, level=level) for level in Level for _ in range(2)]
            pids = [answer.value for answer in returned if isinstance(answer, Returned)]
            at_once = left(own)
            for level in Level:
                answer = await own.run(tool, level=level, params={"hang": True}, timeout_seconds=3.0)
                assert isinstance(answer, TimedOut), answer
            give_up_at = time.monotonic() + 20
            while left(own) and time.monotonic() < give_up_at:
                await asyncio.sleep(0.02)
            in_the_end = left(own)
    is_there = Path(SHM, neighbour.name).exists()
    neighbour.close()
    neighbour.unlink()
    return {
        "warm pids": len(set(pids[:2])),
        "left at once": at_once,
        "left in the end": in_the_end,
        "named": [line for line in own.lines() if line.startswith("/")],
        "neighbour": is_there,
        "errors": [line for line in own.lines("stderr") if "leaked" not in line and "warn" not in line],
    }


async def hold() -> None:
    """Have a run that holds shared memory, and print the names, until somebody kills this process."""
    with tempfile.TemporaryDirectory() as folder:
        async with bench(Path(folder)) as own:
            running = asyncio.create_task(own.run(LEAVING, params={"hang": True}, timeout_seconds=100))
            await own.printed("hanging")
            print(*own.lines(), flush=True)
            await running


if __name__ == "__main__":
    if sys.argv[1:] == ["hold"]:
        asyncio.run(hold())
    else:
        print(json.dumps(asyncio.run(main())))
