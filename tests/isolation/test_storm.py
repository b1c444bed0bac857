"""Thousands of calls, some of which misbehave: every one gets exactly one answer, and nothing is left."""

import asyncio
import contextlib
import gc
import os
import random
import threading
from collections import Counter
from pathlib import Path

from services.executor.isolation.calls import Answer, Died, Raised, Returned, TimedOut
from tests.isolation.bench import bench

CALLS = 10_000
SOURCE = """
import os, signal
def run(n, what):
    open(str(n), "w").close()
    if what == "raise": raise ValueError(n)
    if what == "segv": os.kill(os.getpid(), signal.SIGSEGV)
    if what == "kill": os.kill(os.getpid(), signal.SIGKILL)
    if what == "exit": os._exit(1)
    while what == "hang": pass
    return n
"""
KINDS: dict[str, type] = {
    "": Returned, "raise": Raised, "segv": Died, "kill": Died, "exit": Died, "hang": TimedOut,
}  # fmt: skip


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def marked(mark: str) -> list[str]:
    """The processes that have this in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark.encode() in (path / "environ").read_bytes():
                found.append(path.name)
    return found


def descriptors() -> list[str]:
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


async def test_a_storm_of_calls_is_answered_call_by_call_and_leaves_nothing(tools: Path) -> None:
    dice = random.Random(1)
    weights = [980, 10, 2, 2, 1, 5]
    before = descriptors(), threading.active_count()

    async with bench(tools, capacity=8) as storm:
        tool = storm.tool(SOURCE)
        todo = iter(enumerate(dice.choices(list(KINDS), weights, k=CALLS)))
        wrong: list[tuple[int, str, Answer]] = []
        counted: Counter[str] = Counter()
        memory: list[int] = []

        async def work() -> None:
            for n, what in todo:
                call = storm.call(tool, {"n": n, "what": what}, timeout_seconds=0.3 if what == "hang" else 30)
                answer = await storm.perform(call, storm.report)
                counted[what] += 1
                if n % 500 == 0:
                    memory.append(resident_bytes())
                right = answer == Returned(n) if not what else isinstance(answer, KINDS[what])
                if not right:
                    wrong.append((n, what, answer))

        await asyncio.gather(*(work() for _ in range(8)))
        state = storm.pool.inspect()
        [server] = state.fork_servers
        during = len(marked(server.mark)), len(state.alive)

    await asyncio.get_running_loop().shutdown_default_executor()  # whose threads removed what runs had left
    gc.collect()
    assert wrong == []
    assert counted.total() == CALLS
    assert (descriptors(), threading.active_count()) == before
    assert during[0] >= during[1] > 0
    assert during[1] <= 8
    assert marked(server.mark) == []
    assert not state.directory.exists()
    assert memory[-1] - memory[1] < 8_000_000
