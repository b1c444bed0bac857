"""A growing number of tools, whose runs alternate."""

import asyncio

from benchmarks.peers.figures import rate
from benchmarks.scale.curve import Amounts, Column, Curve, Figures
from benchmarks.scale.ground import ground
from benchmarks.scale.neighbour import neighbour
from shared import keys

WARM_UP = 64


async def measure(count: int, amounts: Amounts) -> Figures:
    """Measure a burst in which each run has another tool than the one before, and single runs."""
    async with ground(amounts.server) as on:
        for number in range(count):
            on.tool(f"mark_{number}")
        await on.experiments(count, lambda number: f"mark_{number}")
        await on.start()
        begun = await on.usage()
        await on.until(lambda: on.redis.exists(*(keys.tool(f"mark_{one}") for one in range(count))), count)
        registered = (await on.usage()).since(begun)
        await on.fill(min(WARM_UP, amounts.runs), count)
        await on.drained()

        first, before = on.queued, await on.usage()
        await on.fill(amounts.runs, count)
        await on.drained()
        used = (await on.usage()).since(before)
        stamps = [at for number, at in on.notes.lines() if number >= first]
        async with neighbour(on) as asking:
            asked = await asking.ask(amounts.asked, count)
        size, before = on.size(), await on.usage()
        await asyncio.sleep(amounts.seconds / 2)
        idle = (await on.usage()).since(before)
        await on.stop()
        return {
            "executor_us_per_run": used.executors / amounts.runs * 1e6,
            "runs_per_second": rate(stamps),
            **asked,
            **size,
            "registered_seconds": registered.at,
            "registered_ms_per_tool": registered.executors / count * 1e3,
            "idle_ms_per_second": idle.executors / idle.at * 1e3,
            **on.notes.faults(range(on.queued)),
        }


CURVE = Curve(
    name="tools",
    title="Tools, alternating",
    unit="tools",
    sizes=(1, 10, 100, 1_000),
    quick=(1, 12),
    measure=measure,
    columns=(
        Column("runs/s", "runs_per_second"),
        Column("a single run, p50 ms", "run_p50_ms", 1),
        Column("PUBLISH to start, p50 ms", "to_start_p50_ms", 1),
        Column("processes", "processes"),
        Column("PSS, MB", "pss_mb", 1),
        Column("all registered after, s", "registered_seconds", 1),
        Column("idle, ms of CPU per second", "idle_ms_per_second", 1),
    ),
    cost=Column("us of CPU per run", "executor_us_per_run"),
    faults=("not_run", "run_twice"),
    reason=(
        "The limit is the number of warm processes, `WARM_PROCESSES`, 32 by default: the process that has "
        "been unused for longest is ended to make room. If more tools alternate, every run starts a "
        "process, which takes two thirds of the CPU time; the fork server takes an eighth. With room for "
        "all tools a run costs the same as with one tool."
    ),
)
