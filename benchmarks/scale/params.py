"""Growing parameters."""

from benchmarks.scale.curve import Amounts, Column, Curve, Figures
from benchmarks.scale.ground import ground
from benchmarks.scale.neighbour import neighbour

WARM_UP = 20
AT_ONCE = 4
"""More of the largest messages would exceed the server's output buffer for a slow subscriber (32 MB)."""
BURST_BYTES = 100_000_000


async def measure(size: int, amounts: Amounts) -> Figures:
    """Measure single runs, then a burst, with messages of this size."""
    async with ground(amounts.server) as on:
        await on.experiments(1)
        await on.start()
        async with neighbour(on) as asking:
            await asking.burst(min(WARM_UP, amounts.runs), AT_ONCE, size)
            figures = await asking.ask(amounts.asked, size=size)
            count = max(1, min(amounts.runs, BURST_BYTES // size))
            held, before = await on.kept_bytes(), await on.usage()
            await asking.burst(count, AT_ONCE, size)
            used, held_bytes = (await on.usage()).since(before), await on.kept_bytes() - held
        taken = on.size()
        await on.stop()
        return {
            **figures,
            "runs_per_second": count / used.at,
            "executor_us_per_run": used.executors / count * 1e6,
            "server_us_per_run": used.server / count * 1e6,
            "bytes_per_record": held_bytes / count,
            **taken,
            **on.notes.faults(range(on.queued)),
        }


CURVE = Curve(
    name="params",
    title="Bytes of a trigger with its parameters",
    unit="bytes",
    sizes=(100, 1_000, 10_000, 100_000, 1_000_000),
    quick=(100, 10_000),
    measure=measure,
    columns=(
        Column("PUBLISH to start, p50 ms", "to_start_p50_ms", 1),
        Column("a single run, p50 ms", "run_p50_ms", 1),
        Column("runs/s", "runs_per_second"),
        Column("server, us of CPU per run", "server_us_per_run"),
        Column("bytes kept per run", "bytes_per_record"),
        Column("PSS, MB", "pss_mb"),
    ),
    cost=Column("executor, us of CPU per run", "executor_us_per_run"),
    faults=("not_run", "run_twice"),
    reason=(
        "The reason is JSON. Parameters are parsed twice (the message and the order) and written four times "
        "(the order, the run's digest, its record and the call). At 100 kB this is two fifths of the "
        "executor's time, at 900 kB three quarters. Below 10 kB it is negligible."
    ),
)
