"""A growing number of executors on one server."""

from benchmarks.peers.figures import rate
from benchmarks.scale.curve import Amounts, Column, Curve, Figures
from benchmarks.scale.ground import ground

WARM_UP_EACH = 50


async def measure(count: int, amounts: Amounts) -> Figures:
    """Measure a burst that all executors share."""
    async with ground(amounts.server) as on:
        await on.experiments(1)
        await on.start(count)
        await on.fill(min(WARM_UP_EACH, amounts.runs) * count)
        await on.drained()

        first, before = on.queued, await on.usage()
        await on.fill(amounts.runs)
        await on.drained()
        used = (await on.usage()).since(before)
        size = on.size()
        stats = await on.redis.info("commandstats")
        await on.stop()
        stamps = [at for number, at in on.notes.lines() if number >= first]
        return {
            "runs_per_second": rate(stamps),
            "executors_us_per_run": used.executors / amounts.runs * 1e6,
            "server_us_per_run": used.server / amounts.runs * 1e6,
            "cores_busy": (used.executors + used.server) / used.at,
            "evalsha_per_run": stats["cmdstat_evalsha"]["calls"] / on.queued,
            **size,
            **on.notes.faults(range(on.queued)),
        }


CURVE = Curve(
    name="executors",
    title="Executors on one server",
    unit="executors",
    sizes=(1, 2, 4, 8),
    quick=(1, 2),
    measure=measure,
    columns=(
        Column("runs/s, total", "runs_per_second"),
        Column("server, us of CPU per run", "server_us_per_run"),
        Column("scripts per run", "evalsha_per_run", 2),
        Column("cores in use", "cores_busy", 2),
        Column("processes", "processes"),
        Column("PSS, MB", "pss_mb"),
    ),
    cost=Column("executors, us of CPU per run", "executors_us_per_run"),
    faults=("not_run", "run_twice"),
    reason=(
        "The limit is the number of cores. The executors' time per run hardly changes, and the server's "
        "decreases, so executors do not wait for each other in Redis. The throughput stops growing when all "
        "cores are in use, by the executors, the server or other processes."
    ),
)
