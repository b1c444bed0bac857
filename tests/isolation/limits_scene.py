"""Runs that exceed a limit.  Run by path as some user; prints how each was ended, as JSON."""

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

from services.executor.isolation.calls import Died, Level, Limits
from tests.isolation.bench import bench

EXCEEDING = """
    import ctypes, mmap, os, time
    def run(what):
        if what == "file": os.write(os.memfd_create("x"), bytes(150_000_000))
        if what == "hidden map": ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
        if what.endswith("map"):
            m = mmap.mmap(-1, 150_000_000)
            for _ in range(150): m.write(b"1" * 1_000_000)
        if what == "processes":
            for _ in range(20):
                if os.fork() == 0: time.sleep(1000)
        time.sleep(1000)
"""
MEMORY = Limits(memory_bytes=100_000_000)
LIMITS = {"file": MEMORY, "map": MEMORY, "hidden map": MEMORY, "processes": Limits(processes=5)}


async def main() -> dict[str, Any]:
    """The reasons, by what was exceeded and at which level."""
    with tempfile.TemporaryDirectory() as folder:
        async with bench(Path(folder)) as own:
            tool = own.tool(EXCEEDING)
            reasons = {}
            for level in Level:
                for what, limits in LIMITS.items():
                    answer = await own.run(
                        tool, level=level, params={"what": what}, limits=limits, timeout_seconds=30
                    )
                    assert isinstance(answer, Died), answer
                    reasons[f"{what} {level}"] = answer.reason
            return reasons


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main())))
