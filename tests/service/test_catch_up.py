"""Which of the missed due times run, and how many of them at once, for each pair of policies."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from services.executor.scheduler import CronScheduler
from services.executor.scheduling.misfires import Misfires
from services.executor.store import NotedSchedule, Store
from shared import keys
from tests.conftest import Neighbour, Serve, Tools, eventually
from tests.service.trouble import Log

MISSED = 7
HOUR_MS = 3_600_000
HOLD = """
    import time
    from pathlib import Path
    from shared import toolkit

    def hold(until: str):
        toolkit.progress(0)
        while not Path(until).exists():
            time.sleep(0.01)
"""
# Of seven missed due times, under catch_up and overlap: how many run, and how many at once.
PAIRS = [
    ("latest", "skip", 1, 1),
    ("latest", "queue", 1, 1),
    ("latest", "allow", 1, 1),
    ("all", "skip", MISSED, 1),
    ("all", "queue", MISSED, 1),
    ("all", "allow", MISSED, MISSED),
    ("none", "skip", 0, 0),
    ("none", "queue", 0, 0),
    ("none", "allow", 0, 0),
]


@contextlib.asynccontextmanager
async def scheduler(
    store: Store, misfires: Misfires, check_interval_seconds: float = 600.0
) -> AsyncIterator[None]:
    """A scheduler at work; others perform what it queues."""
    task = asyncio.create_task(CronScheduler(store, check_interval_seconds, misfires=misfires).run())
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@pytest.fixture
async def go(neighbour: Neighbour, tools: Tools, tmp_path: Path) -> Path:
    """Runs of `exp_1` last until this file exists."""
    tools("hold", HOLD)
    return tmp_path / "go"


async def miss(neighbour: Neighbour, store: Store, go: Path, **policy: Any) -> list[int]:
    """Write an hourly schedule whose last due times were missed; return them (UTC ms)."""
    await neighbour.publish("exp_1", "hold", params={"until": str(go)}, **policy)
    now_ms = await store.due_times.now_ms()
    minute = (now_ms // 60_000 + 30) % 60  # it is not due while the test runs
    latest_ms = now_ms // 60_000 * 60_000 - 30 * 60_000
    missed = [latest_ms - number * HOUR_MS for number in reversed(range(MISSED))]
    await neighbour.redis.set("schedules:exp_1", f"{minute} * * * *")
    await store.due_times.note([NotedSchedule("exp_1", f"{minute} * * * *", missed[0])])
    return missed


async def begun(neighbour: Neighbour) -> int:
    """How many runs have begun."""
    return len([one for one in neighbour.heard_of("exp_1", keys.METRICS) if one["event"] == "run_started"])


async def have_fired(store: Store) -> bool:
    """Whether all missed due times have been dealt with."""
    return (await store.due_times.all())["exp_1"] > await store.due_times.now_ms()


@pytest.mark.parametrize(
    ("portion", "catch_up", "overlap", "runs", "at_once"),
    [
        *((1_000, *pair) for pair in PAIRS),
        *((3, *pair) for pair in PAIRS if pair[0] == "all"),
    ],
)
async def test_missed_due_times_run_as_catch_up_and_overlap_say(
    portion: int,
    catch_up: str,
    overlap: str,
    runs: int,
    at_once: int,
    serve: Serve,
    neighbour: Neighbour,
    store: Store,
    log: Log,
    go: Path,
) -> None:
    missed = await miss(neighbour, store, go, catch_up=catch_up, overlap=overlap)

    async with serve(concurrency=MISSED + 1), scheduler(store, Misfires(at_once=portion)):
        await eventually(lambda: have_fired(store), "the missed due times")
        await neighbour.events("exp_1", "run_started", at_once)
        if runs > at_once:
            await log.said_of(runs - at_once, "run.waiting")
        together = await begun(neighbour)
        go.touch()
        results = await neighbour.results("exp_1", runs)

    records = [await neighbour.record(one["run_id"]) for one in results]
    assert together == at_once
    assert sorted(due_ms(one) for one in records) == (missed if runs == MISSED else missed[-1:] * runs)
    assert await neighbour.redis.exists(keys.open_runs("exp_1")) == 0
    assert at_once != 1 or not overlapping(records)


def due_ms(record: dict[str, str]) -> int:
    """The due time of a run."""
    return round(datetime.fromisoformat(record["scheduled_for"]).timestamp() * 1_000)


def overlapping(records: list[dict[str, str]]) -> list[tuple[str, str]]:
    """Ends and starts of runs, one after the other, that are in the wrong order."""
    spans = sorted((one["started_at"], one["finished_at"]) for one in records)
    return [(end, start) for (_, end), (start, _) in pairwise(spans) if start < end]


async def test_a_run_that_is_open_holds_up_the_missed_due_times_and_loses_none(
    serve: Serve, neighbour: Neighbour, store: Store, log: Log, go: Path
) -> None:
    missed = await miss(neighbour, store, go, catch_up="all")
    async with serve(schedule_mode="cron", shutdown_grace=0):
        await neighbour.events("exp_1", "progress")
    await neighbour.redis.zadd(keys.due_times(), {"exp_1": missed[0]})

    async with serve(schedule_mode="cron", concurrency=3 * MISSED):
        await log.said_of(2 * MISSED - 1, "run.waiting")
        go.touch()
        results = await neighbour.results("exp_1", 2 * MISSED)

    records = [await neighbour.record(one["run_id"]) for one in results]
    assert sorted(due_ms(one) for one in records) == sorted(2 * missed)
    assert not overlapping(records)


async def test_a_due_time_on_time_is_skipped_while_others_are_caught_up_with(
    serve: Serve, neighbour: Neighbour, store: Store, log: Log, go: Path
) -> None:
    await miss(neighbour, store, go, catch_up="all")
    patient = Misfires(on_time_ms=60_000)  # however slow the machine is
    async with serve(), scheduler(store, patient, check_interval_seconds=0.1):
        await neighbour.events("exp_1", "progress")
        await neighbour.redis.zadd(keys.due_times(), {"exp_1": await store.due_times.now_ms()})
        await log.said("due_time.skipped")
        go.touch()
        await neighbour.results("exp_1", MISSED)

    assert await neighbour.redis.exists(keys.open_runs("exp_1")) == 0
