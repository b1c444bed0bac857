"""Slots that were missed: which of them run, and how many of these at once, for each pair of policies."""

from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from services.executor.scheduling import misfires
from services.executor.store import Plan, Store
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
# Of seven missed slots, under catch_up and overlap: how many run, and how many at once.
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


@pytest.fixture
async def go(neighbour: Neighbour, tools: Tools, tmp_path: Path) -> Path:
    """Runs of `exp_1` last until this file exists."""
    tools("hold", HOLD)
    return tmp_path / "go"


async def miss(neighbour: Neighbour, store: Store, go: Path, **policy: Any) -> list[int]:
    """Have an hourly schedule whose last slots were missed, and say which (UTC ms)."""
    await neighbour.publish("exp_1", "hold", params={"until": str(go)}, **policy)
    now_ms = await store.slots.now_ms()
    minute = (now_ms // 60_000 + 30) % 60  # no slot comes while the test runs
    latest_ms = now_ms // 60_000 * 60_000 - 30 * 60_000
    missed = [latest_ms - number * HOUR_MS for number in reversed(range(MISSED))]
    await neighbour.redis.set("schedules:exp_1", f"{minute} * * * *")
    await store.slots.plan([Plan("exp_1", f"{minute} * * * *", missed[0])])
    return missed


async def begun(neighbour: Neighbour) -> int:
    """How many runs have begun."""
    return len([one for one in neighbour.heard_of("exp_1", keys.METRICS) if one["event"] == "run_started"])


async def have_fired(store: Store) -> bool:
    """Whether all missed slots have been dealt with."""
    return (await store.slots.all())["exp_1"] > await store.slots.now_ms()


@pytest.mark.parametrize(
    ("portion", "catch_up", "overlap", "runs", "at_once"),
    [
        *((misfires.CAUGHT_UP_AT_ONCE, *pair) for pair in PAIRS),
        *((3, *pair) for pair in PAIRS if pair[0] == "all"),
    ],
)
async def test_missed_slots_run_as_catch_up_and_overlap_say(
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
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(misfires, "CAUGHT_UP_AT_ONCE", portion)
    missed = await miss(neighbour, store, go, catch_up=catch_up, overlap=overlap)

    async with serve(schedule_mode="cron", concurrency=MISSED + 1):
        await eventually(lambda: have_fired(store), "the missed slots")
        await neighbour.events("exp_1", "run_started", at_once)
        if runs > at_once:
            await log.said_of(runs - at_once, "run.waiting")
        together = await begun(neighbour)
        go.touch()
        results = await neighbour.results("exp_1", runs)

    records = [await neighbour.record(one["run_id"]) for one in results]
    assert together == at_once
    assert sorted(slot_ms(one) for one in records) == (missed if runs == MISSED else missed[-1:] * runs)
    assert await neighbour.redis.exists(keys.open_runs("exp_1")) == 0
    assert at_once != 1 or not overlapping(records)


def slot_ms(record: dict[str, str]) -> int:
    """Which slot a run is of."""
    return round(datetime.fromisoformat(record["scheduled_for"]).timestamp() * 1_000)


def overlapping(records: list[dict[str, str]]) -> list[tuple[str, str]]:
    """Ends and starts of runs, one after the other, that are in the wrong order."""
    spans = sorted((one["started_at"], one["finished_at"]) for one in records)
    return [(end, start) for (_, end), (start, _) in pairwise(spans) if start < end]


async def test_a_run_that_is_open_holds_up_the_missed_slots_and_loses_none(
    serve: Serve, neighbour: Neighbour, store: Store, log: Log, go: Path
) -> None:
    missed = await miss(neighbour, store, go, catch_up="all")
    async with serve(schedule_mode="cron", shutdown_grace=0):
        await neighbour.events("exp_1", "progress")
    await neighbour.redis.zadd(keys.slots(), {"exp_1": missed[0]})

    async with serve(schedule_mode="cron", concurrency=3 * MISSED):
        await log.said_of(2 * MISSED - 1, "run.waiting")
        go.touch()
        results = await neighbour.results("exp_1", 2 * MISSED)

    records = [await neighbour.record(one["run_id"]) for one in results]
    assert sorted(slot_ms(one) for one in records) == sorted(2 * missed)
    assert not overlapping(records)


async def test_a_slot_on_time_is_skipped_while_others_are_caught_up_with(
    serve: Serve, neighbour: Neighbour, store: Store, log: Log, go: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(misfires, "ON_TIME_MS", 60_000)  # however slow the machine is
    await miss(neighbour, store, go, catch_up="all")
    async with serve(schedule_mode="cron", cron_check_interval=0.1):
        await neighbour.events("exp_1", "progress")
        await neighbour.redis.zadd(keys.slots(), {"exp_1": await store.slots.now_ms()})
        await log.said("slot.skipped")
        go.touch()
        await neighbour.results("exp_1", MISSED)

    assert await neighbour.redis.exists(keys.open_runs("exp_1")) == 0
