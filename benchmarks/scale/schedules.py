"""A growing number of schedules, of which a few fire every second."""

import asyncio
import itertools
import time
from collections import defaultdict
from datetime import UTC, datetime, timedelta

from benchmarks.peers.figures import NS, lateness_ms, missed, percentile
from benchmarks.scale.curve import Amounts, Column, Curve, Figures
from benchmarks.scale.ground import EXPERIMENT, Ground, Usage, ground
from shared import keys

DUE = 10
EVERY_SECOND = "* * * * * *"
WARM_UP_SECONDS = 1.5
MARGIN_SECONDS = 1.0
DEFAULT_INTERVAL_SECONDS = 60.0
WRITTEN_AT_ONCE = 1_000
READ_LOOK_SECONDS = 0.2


async def measure(total: int, amounts: Amounts) -> Figures:
    """Measure lateness and cost between readings, and the additional cost of reading all schedules."""
    async with ground(amounts.server) as on:
        due = min(DUE, total)
        await on.experiments(due)
        await _write(on, due, total)
        interval = WARM_UP_SECONDS + amounts.seconds + MARGIN_SECONDS
        await on.start(schedule_mode="trigger,cron", cron_check_interval=interval)
        begun = await on.usage()
        await _read(on, 1)
        noted = (await on.usage()).since(begun)
        await asyncio.sleep(WARM_UP_SECONDS)

        quiet, began_ns, ended_ns = await _watched(on, amounts.seconds)
        before = await on.usage()
        await _read(on, 2)
        reading = (await on.usage()).since(before)
        size, server_bytes = on.size(), await on.used_memory()
        await on.stop()
        return {
            "noted_seconds": noted.at,
            "noted_executor_ms": noted.executors * 1e3,
            "executor_ms_per_second": quiet.executors / quiet.at * 1e3,
            "server_ms_per_second": quiet.server / quiet.at * 1e3,
            **_reading(quiet, reading),
            **_lateness(on, began_ns, ended_ns),
            **size,
            "server_mb": server_bytes / 1e6,
        }


async def _write(on: Ground, due: int, total: int) -> None:
    """Write `due` schedules that fire every second, and others that fire on other days."""
    params = [EVERY_SECOND] * due + far_away(total - due)
    for start in range(0, total, WRITTEN_AT_ONCE):
        some = range(start, min(start + WRITTEN_AT_ONCE, total))
        await on.redis.mset({keys.schedule(f"{EXPERIMENT}{one}"): params[one] for one in some})
        others = {keys.experiment(f"{EXPERIMENT}{one}"): '{"tool":"mark"}' for one in some if one >= due}
        if others:
            await on.redis.mset(others)


def far_away(count: int) -> list[str]:
    """Different expressions, none of them due in the next days."""
    today = datetime.now(UTC)
    soon = {(today + timedelta(days=days)).month for days in range(3)}
    months = [month for month in range(1, 13) if month not in soon]
    minutes = itertools.product(months, range(1, 29), range(24), range(60))
    return [
        f"{minute} {hour} {day} {month} *" for month, day, hour, minute in itertools.islice(minutes, count)
    ]


async def _read(on: Ground, times: int) -> None:
    """Wait until all schedules have been read `times` times; each reading ends with one HKEYS."""

    async def readings() -> int:
        stats = await on.redis.info("commandstats")
        return int(stats.get("cmdstat_hkeys", {}).get("calls", 0))

    await on.until(readings, times, READ_LOOK_SECONDS)


async def _watched(on: Ground, seconds: float) -> tuple[Usage, int, int]:
    """The usage in this time, its first due time, and its end; times are Unix nanoseconds."""
    before, began = await on.usage(), time.time_ns()
    await asyncio.sleep(seconds)
    ended_ns = time.time_ns()
    return (await on.usage()).since(before), (began // NS + 1) * NS, ended_ns


def _reading(quiet: Usage, reading: Usage) -> Figures:
    """The usage beyond that of the same time without a reading."""
    executor = reading.executors - quiet.executors * reading.at / quiet.at
    server = reading.server - quiet.server * reading.at / quiet.at
    return {
        "reading_executor_ms": executor * 1e3,
        "reading_server_ms": server * 1e3,
        "total_ms_per_second": (quiet.executors / quiet.at + executor / DEFAULT_INTERVAL_SECONDS) * 1e3,
    }


def _lateness(on: Ground, began_ns: int, ended_ns: int) -> Figures:
    """Times from the due time to the tool's first line, by the wall clock."""
    stamps: dict[int, list[int]] = defaultdict(list)
    for schedule, at in on.notes.lines():
        if at >= began_ns - NS // 20:
            stamps[schedule].append(at)
    late = {at: ms for each in stamps.values() for at, ms in zip(each, lateness_ms(each, 1), strict=True)}
    quiet = [ms for at, ms in late.items() if at < ended_ns]
    due_times = [[round((at - late[at] * 1e6) / NS) for at in each] for each in stamps.values()]
    return {
        "late_p50_ms": percentile(quiet, 50),
        "late_p99_ms": percentile(quiet, 99),
        "late_max_ms": max(quiet),
        "late_max_reading_ms": max((ms for at, ms in late.items() if at >= ended_ns), default=max(quiet)),
        "fired": len(late),
        "early": sum(ms < 0 for ms in late.values()),
        "missed": sum(missed(each, 1) for each in stamps.values()),
        "fired_twice": sum(len(each) - len(set(each)) for each in due_times),
    }


CURVE = Curve(
    name="schedules",
    title="Schedules, of which ten fire every second",
    unit="schedules",
    sizes=(10, 100, 1_000, 10_000, 100_000),
    quick=(5, 50),
    measure=measure,
    columns=(
        Column("late, p50 ms", "late_p50_ms", 1),
        Column("p99", "late_p99_ms", 1),
        Column("max", "late_max_ms", 1),
        Column("max during a reading", "late_max_reading_ms", 1),
        Column("executor, ms of CPU per second", "executor_ms_per_second", 1),
        Column("server", "server_ms_per_second", 1),
        Column("one reading of all, ms of CPU", "reading_executor_ms"),
        Column("server ", "reading_server_ms"),
        Column("all noted after the start, s", "noted_seconds", 1),
        Column("PSS, MB", "pss_mb", 1),
    ),
    cost=Column("CPU with one reading per minute, ms per second", "total_ms_per_second", 1),
    faults=("early", "missed", "fired_twice"),
    reason=(
        "A wake-up asks only for due schedules, so its cost does not grow. A reading of all schedules is "
        "proportional to their number: half of the executor's time is SCAN and GET, and most of the rest the "
        "comparison with the known schedules. The first reading costs several times more, because the next "
        "due time of each schedule is computed; equal schedules share it, and here all are different."
    ),
)
