"""A queue that is longer and longer, and what one run of it costs."""

import asyncio
from typing import Any

from benchmarks.peers.figures import rate
from benchmarks.scale.curve import Amounts, Column, Curve, Figures
from benchmarks.scale.ground import Ground, ScaleError, ground
from services.executor.store import Retention, Store
from services.executor.store.claims import CLAIM

WARM_UP = 200
WEIGHED_FROM = 1_000
TOP_UP_SECONDS = 0.002
REFERENCE = 1_000
SLOWLOG = "slowlog-log-slower-than"
SLOWLOG_KEPT = "slowlog-max-len"
WORKER = "benchmark"
RETENTION = Retention(record_ms=60_000, metrics=1_000, journal=1_000, log_lines=1_000)


async def measure(depth: int, amounts: Amounts, experiments: int = 1) -> Figures:
    """What a run costs while so many are queued or under way; one is added for each that ends."""
    async with ground(amounts.server) as on:
        await on.experiments(experiments)
        empty = await on.used_memory()
        await on.fill(depth, experiments)
        held_bytes = await on.used_memory() - empty
        await on.start()
        await _perform(on, depth, min(WARM_UP, amounts.runs), experiments)

        first, before = await on.done(), await on.usage()
        await _perform(on, depth, amounts.runs, experiments)
        used, count = (await on.usage()).since(before), await on.done() - first
        size = on.size()
        await on.stop()
        done = await on.done()
        await _top_up(on, depth, experiments)
        async with ground(amounts.server) as reference:
            await reference.experiments(experiments)
            await reference.fill(REFERENCE, experiments)
            claims = await _claims(on, reference, amounts.runs, experiments)
        stamps = [at for number, at in on.notes.lines() if first <= number < first + count]
        return {
            "runs": count,
            "runs_per_second": rate(stamps),
            "executor_us_per_run": used.executors / count * 1e6,
            "server_us_per_run": used.server / count * 1e6,
            **claims,
            **({"bytes_per_queued_run": held_bytes / depth} if depth >= WEIGHED_FROM else {}),
            **size,
            **on.notes.faults(range(done)),
        }


async def _perform(on: Ground, depth: int, count: int, experiments: int) -> None:
    """Until so many more have ended; the queue is kept at its depth meanwhile."""
    goal = await on.done() + count
    while await on.done() < goal:
        on.check()
        await _top_up(on, depth, experiments)
        await asyncio.sleep(TOP_UP_SECONDS)


async def _top_up(on: Ground, depth: int, experiments: int) -> None:
    gone = depth - await on.left()
    if gone > 0:
        await on.fill(gone, experiments)


async def _claims(on: Ground, reference: Ground, count: int, experiments: int) -> Figures:
    """The server's time in the script that claims, a run at a time, by its own log of commands.

    Nobody else asks meanwhile, and each run that is claimed makes room for another one.  The two
    servers take turns: by themselves, a busy machine would make more of a difference than they do.
    """
    both = {one: Store.on(one.redis, one.redis, RETENTION) for one in (on, reference)}
    for one, store in both.items():
        await store.queue.create_group()
        await store.workers.tell_tools(WORKER, {"mark": ""}, ttl_seconds=3_600)
        for option, value in ((SLOWLOG_KEPT, 3 * count), (SLOWLOG, 0)):
            await one.redis.config_set(option, value)
    for _ in range(count):
        for one, store in both.items():
            if not (await store.queue.claim(WORKER, 1)).claims:
                raise ScaleError("there was nothing to be claimed")
            await one.fill(1, experiments)
    here, there = [await _middle_us(one) for one in both]
    return {"claim_us": here, "claim_ratio": here / there}


async def _middle_us(on: Ground) -> float:
    """The mean of the half in the middle: finer than a median of whole microseconds, and deaf to a pause."""
    await on.redis.config_set(SLOWLOG, -1)
    found = [one for one in await on.redis.slowlog_get(-1) if _is_claim(one)]
    durations = sorted(int(one["duration"]) for one in found)
    quarter = len(durations) // 4
    middle = durations[quarter : len(durations) - quarter]
    return sum(middle) / len(middle)


def _is_claim(entry: Any) -> bool:
    command: bytes | str = entry["command"]
    text = command.decode(errors="replace") if isinstance(command, bytes) else command
    return text.startswith(f"EVALSHA {CLAIM.digest}")


CURVE = Curve(
    name="queue",
    title="Queued runs",
    unit="queued",
    sizes=(1, 10, 1_000, 10_000, 100_000, 1_000_000),
    quick=(1, 200),
    measure=measure,
    columns=(
        Column(f"ratio to {REFERENCE:,} queued", "claim_ratio", 2),
        Column("server, us of CPU per run", "server_us_per_run"),
        Column("executor, us of CPU per run", "executor_us_per_run"),
        Column("runs/s", "runs_per_second"),
        Column("bytes per queued run", "bytes_per_queued_run"),
    ),
    cost=Column("claim, us of the server", "claim_us", 1),
    faults=("not_run", "run_twice"),
    reason=(
        "The length of the queue hardly matters, because XREADGROUP starts at the last entry of its group. "
        "The step in the ratio is memory management: the embedded server is built with glibc's allocator, "
        "whose `_int_malloc` takes four times the share of a claim with 1,000,000 runs that it takes with "
        "30,000. "
        "With jemalloc the same server had ratios of 1.00 with 100,000 runs, and 1.03, 1.06 and 1.14 with "
        "1,000,000. With 1 queued run nothing is shared: each step of the run is a wake-up of its own."
    ),
)
