"""What is to be done a moment later, for many with one timer."""

import asyncio
import gc
import weakref

from services.executor.isolation.calls import Level, Returned
from services.executor.isolation.later import Later
from services.executor.isolation.process import Process
from tests.isolation.bench import Bench

MOMENT_SECONDS = 0.02


async def test_it_is_done_once_and_not_before_its_time() -> None:
    done = list[tuple[str, float]]()
    loop = asyncio.get_running_loop()
    later = Later[str](MOMENT_SECONDS, lambda item: done.append((item, loop.time())))
    added = dict[str, float]()

    for item in ("first", "second", "third"):
        later.add(item)
        added[item] = loop.time()
        await asyncio.sleep(MOMENT_SECONDS * 0.7)
    while len(done) < len(added):
        await asyncio.sleep(0.001)
    await asyncio.sleep(3 * MOMENT_SECONDS)

    assert sorted(item for item, _ in done) == sorted(added)
    # The event loop rings a timer up to its clock's resolution early.
    assert all(at >= added[item] + MOMENT_SECONDS * 0.9 for item, at in done)


async def test_what_was_removed_in_time_is_left_alone() -> None:
    done = list[str]()
    later = Later[str](3_600, done.append)

    later.add("old")
    later._ring()
    later.add("new")
    later.remove("old")
    later.remove("new")
    later.remove("never added")
    later._ring()
    later._ring()

    assert done == []


async def test_nothing_of_a_fork_waits_for_the_garbage_collector(bench: Bench) -> None:
    tool = bench.tool("def run(): return 1")
    stable = bench.pool._open_stable()
    await bench.run(tool, level=Level.FORK)
    made = list[weakref.ref[Process]]()
    prepare = stable._standbys._prepare

    def watched(template: Process) -> Process:
        process = prepare(template)
        made.append(weakref.ref(process))
        return process

    stable._standbys._prepare = watched
    gc.collect()
    gc.disable()
    try:
        for _ in range(4):
            assert await bench.run(tool, level=Level.FORK) == Returned(1)
        while len(stable._alive) > len(stable._standbys) + 1:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0)
        left = [process for process in made if process() is not None]
    finally:
        gc.enable()

    assert len(made) >= 4
    assert len(left) <= len(stable._standbys)
