"""What cron costs with very many schedules: `python -m benchmarks.schedules`.

A real scheduler on a real server, in this process.  Of all the schedules some fire
every five seconds, the others once a year.  What a wake-up costs (commands and bytes
as the server counts them, processor time of both sides) must grow with those that
are due and not with all of them: compare the same number due of few and of many.

All schedules are read again every `check_interval` (60 s by default), for those that
were written without a message.  The second table says what that costs, for how
long the event loop was blocked at most, and how late the latest run was meanwhile.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import astuple, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import structlog

from services.executor.scheduler import CronScheduler
from services.executor.store import Retention, Store
from services.executor.store.orders import NORMAL
from shared import keys
from shared.connection import connect, connect_blocking
from shared.embedded import EmbeddedServer

OFTEN, OFTEN_SECONDS = "* * * * * */5", 5
SELDOM = "0 0 1 1 *"
NEVER_SECONDS = 86_400.0
AT_ONCE_SECONDS = 0.001
WAKE_UPS = 3
WATCHED_SECONDS = 15
MOST = 1.1
WRITTEN_AT_ONCE = 5_000
LOOK_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class Cost:
    """What was done until now."""

    commands: float
    bytes_moved: float
    worker_ms: float
    server_ms: float

    @classmethod
    async def now(cls, redis: Any) -> Self:
        """As the server and the kernel count it."""
        stats, cpu = await redis.info("stats"), await redis.info("cpu")
        moved = stats["total_net_input_bytes"] + stats["total_net_output_bytes"]
        server_ms = (cpu["used_cpu_user"] + cpu["used_cpu_sys"]) * 1_000
        return cls(stats["total_commands_processed"], moved, time.process_time() * 1_000, server_ms)

    def since(self, before: Self, parts: int = 1) -> Self:
        """The share of one of `parts` in what was done since."""
        pairs = zip(astuple(self), astuple(before), strict=True)
        return type(self)(*((now - then) / parts for now, then in pairs))


@contextlib.asynccontextmanager
async def scheduler(total: int, due: int, check_interval_seconds: float) -> AsyncIterator[Any]:
    """A client, while a scheduler works on `total` schedules, of which `due` fire often; all are noted."""
    with tempfile.TemporaryDirectory(prefix="schedules-") as folder:
        server = EmbeddedServer.acquire(Path(folder))
        redis: Any = connect(server.url)
        client, patient = connect(server.url), connect_blocking(server.url)
        await _write(redis, total, due)
        store = Store.on(client, patient, Retention(record_ms=1, metrics=1, journal=1, log_lines=1))
        task = asyncio.create_task(CronScheduler(store, check_interval_seconds).run())
        await _until(lambda: redis.hlen(keys.noted_schedules()), total)
        yield redis
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        for one in (redis, client, patient):
            await one.aclose()
        server.release()


async def _write(redis: Any, total: int, due: int) -> None:
    for start in range(0, total, WRITTEN_AT_ONCE):
        async with redis.pipeline(transaction=False) as pipe:
            for number in range(start, min(start + WRITTEN_AT_ONCE, total)):
                pipe.hset(keys.experiment(f"exp_{number}"), mapping={"tool": "none", "overlap": "allow"})
                pipe.set(keys.schedule(f"exp_{number}"), OFTEN if number < due else SELDOM)
            await pipe.execute()


async def _until(count: Callable[[], Any], goal: int) -> None:
    while await count() < goal:
        await asyncio.sleep(0.1)


# -- a wake-up ------------------------------------------------------------------------


async def wake_up(total: int, due: int) -> Cost:
    """What one wake-up with so many due costs on average."""
    async with scheduler(total, due, NEVER_SECONDS) as redis:
        await _between_due_times()
        queued, before = await redis.xlen(keys.queue(NORMAL)), await Cost.now(redis)
        await asyncio.sleep(WAKE_UPS * OFTEN_SECONDS)
        after, fired = await Cost.now(redis), await redis.xlen(keys.queue(NORMAL)) - queued
        if fired != WAKE_UPS * due:
            raise RuntimeError(f"{fired} runs were queued instead of {WAKE_UPS * due}")
        return after.since(before, WAKE_UPS)


async def _between_due_times() -> None:
    """Sleep until well after a due time and well before the next."""
    seconds = time.time() % OFTEN_SECONDS
    await asyncio.sleep((OFTEN_SECONDS * 0.8 - seconds) % OFTEN_SECONDS)


# -- all are read again ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Meanwhile:
    """What it was like for some seconds.  `cost` is that of one reading of all."""

    readings: int
    cost: Cost
    blocked_ms: float
    late_ms: float


async def meanwhile(total: int, due: int, check_interval_seconds: float) -> Meanwhile:
    """What it is like while all are read again every so often and some are due."""
    async with scheduler(total, due, check_interval_seconds) as redis:
        await _between_due_times()
        [(last, _)] = await redis.xrevrange(keys.queue(NORMAL), count=1) or [("0-0", None)]
        readings, before = await _readings(redis), await Cost.now(redis)
        blocked_ms = await _longest_block_ms(WATCHED_SECONDS)
        after, readings = await Cost.now(redis), await _readings(redis) - readings
        cost = after.since(before, max(1, readings))
        return Meanwhile(readings, cost, blocked_ms, await _latest_ms(redis, last))


async def _readings(redis: Any) -> int:
    """How often all were read: each reading asks once which are noted."""
    stats = await redis.info("commandstats")
    return int(stats["cmdstat_hkeys"]["calls"])


async def _longest_block_ms(seconds: float) -> float:
    longest, until = 0.0, time.monotonic() + seconds
    while (begun := time.monotonic()) < until:
        await asyncio.sleep(LOOK_SECONDS)
        longest = max(longest, time.monotonic() - begun - LOOK_SECONDS)
    return longest * 1_000


async def _latest_ms(redis: Any, after: str) -> float:
    """How long after its due time the latest of the runs was queued."""
    late = [0.0]
    for entry, fields in await redis.xrange(keys.queue(NORMAL), min=f"({after}"):
        due = datetime.fromisoformat(json.loads(fields["order"])["scheduled_for"])
        late.append(int(entry.partition("-")[0]) - due.timestamp() * 1_000)
    return max(late)


# -- what is printed ------------------------------------------------------------------


def row(name: str, *cells: str) -> None:
    """One line of a table."""
    print(f"{name:>28}" + "".join(f"{cell:>12}" for cell in cells), flush=True)


def cells(cost: Cost) -> list[str]:
    """Its figures, as they are shown."""
    return [
        f"{cost.commands:,.0f}",
        f"{cost.bytes_moved / 1_000:,.0f}",
        f"{cost.worker_ms:,.1f}",
        f"{cost.server_ms:,.1f}",
    ]


async def run(asked: argparse.Namespace) -> int:
    """Print both tables; 1 when a wake-up asked Redis for more because there are more schedules."""
    row("a wake-up", "commands", "kB", "worker ms", "server ms")
    worst = 0.0
    for due in asked.due:
        few, many = await wake_up(asked.few, due), await wake_up(asked.many, due)
        row(f"{due:,} due of {asked.few:,}", *cells(few))
        row(f"{due:,} due of {asked.many:,}", *cells(many))
        pairs = list(zip(astuple(many), astuple(few), strict=True))
        row("ratio", *(f"{one / other:.2f}" for one, other in pairs))
        worst = max(worst, many.commands / few.commands)
    print()
    row(f"{asked.many:,} schedules", "commands", "kB", "worker ms", "server ms", "blocked ms", "late ms")
    for name, seconds in (("nothing is read", NEVER_SECONDS), ("one reading of all", AT_ONCE_SECONDS)):
        was = await meanwhile(asked.many, asked.due[0], seconds)
        ends = f"{was.blocked_ms:.0f}", f"{was.late_ms:.0f}"
        row(name, *cells(was.cost), *ends)
    print(f"It was read {was.readings} times in {WATCHED_SECONDS} s.")
    return 1 if worst > MOST else 0


def main() -> int:
    """Exit code 0 when the work of a wake-up is that of those that are due."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.schedules",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--few", type=int, default=1_000)
    parser.add_argument("--many", type=int, default=100_000)
    parser.add_argument("--due", type=int, nargs="+", default=[10, 100, 1_000])
    asked = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    return asyncio.run(run(asked))


if __name__ == "__main__":
    sys.exit(main())
