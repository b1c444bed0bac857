"""What runs leave in Redis: what the settings say for as long as they say, and nothing else."""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from services.executor.store import Order, Store
from services.executor.store.orders import PRIORITIES
from shared import keys
from tests.conftest import Neighbour, Serve, Tools, eventually
from tests.store.conftest import Worker, publish, store_on

BEHAVES = """
    import time
    from shared import toolkit

    def behaves(how: str):
        toolkit.once("step", lambda: how)
        toolkit.progress(1, 2)
        for number in range(300 if how == "talk" else 1):
            print(how, number)
        if how == "fail" or how == "once more" and toolkit.run.attempt == 1:
            raise (ValueError if how == "fail" else ConnectionError)(how)
        if how == "hang":
            time.sleep(600)
        return {"how": how}
"""
RUNS = {"good": 200, "fail": 40, "once more": 30, "talk": 10, "hang": 6, "cancelled": 8}
STATUS = {
    "good": "completed",
    "fail": "failed",
    "once more": "completed",
    "talk": "completed",
    "hang": "timeout",
}
KEPT = {"run_retention": 1_000.0, "metrics_kept": 50, "journal_kept": 100, "log_lines_kept": 20}
A_NODE = 100
"""Streams are capped roughly: by whole nodes of so many entries."""

SCHEDULES = {keys.due_times(), keys.noted_schedules()}
LASTING = {
    keys.journal(),
    keys.dataset(),
    keys.turns(),
    keys.registered(),
    *SCHEDULES,
    *map(keys.queue, PRIORITIES),
}


@pytest.fixture(autouse=True)
def behaves(tools: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.executor.recovery.PROMOTE_SECONDS", 0.05)
    tools("behaves", BEHAVES)


async def perform(serve: Serve, neighbour: Neighbour, runs: Mapping[str, int], **kept: Any) -> None:
    """Have so many runs of each kind, by PUBLISH, cron and speedrun, and wait for the end of all."""
    for name in ("exp_cron", "exp_turn"):
        await neighbour.publish(name, "behaves", params={"how": "good"})
    await neighbour.redis.set("schedules:exp_cron", "* * * * * *")
    async with serve(schedule_mode=("cron", "speedrun"), **kept):
        await neighbour.events("exp_cron", "run_completed")
        await neighbour.events("exp_turn", "run_completed")
        await neighbour.redis.delete("schedules:exp_cron")
    async with serve(schedule_mode=("trigger", "cron"), retry_backoff_min=0, retry_backoff_max=0, **kept):
        for how, count in runs.items():
            asked_for = perform_cancelled if how == "cancelled" else perform_one_kind
            await asked_for(neighbour, how, count)
        await eventually(lambda: nothing_waits(neighbour.redis), "the end of all runs")


async def perform_one_kind(neighbour: Neighbour, how: str, count: int) -> None:
    policy = {"timeout_seconds": 0.4, "max_concurrent": 8} if how == "hang" else {"max_per_minute": 600_000}
    await neighbour.publish(f"exp_{how}", "behaves", params={"how": how}, **policy)
    for number in range(count):
        await neighbour.trigger({"experiment_id": f"exp_{how}", "request_id": f"{how} {number}"})
        if number % 20 == 0:
            await neighbour.trigger("nothing that could be read")
    await neighbour.results(f"exp_{how}", count)


async def perform_cancelled(neighbour: Neighbour, how: str, count: int) -> None:
    """One that runs, and others that wait for its end."""
    await neighbour.publish(f"exp_{how}", "behaves", params={"how": "hang"}, max_concurrent=1)
    for _ in range(count):
        await neighbour.trigger({"experiment_id": f"exp_{how}"})
    await neighbour.events(f"exp_{how}", "progress")

    async def all_are_queued() -> bool:
        return int(await neighbour.redis.zcard(keys.open_runs(f"exp_{how}"))) == count

    await eventually(all_are_queued, "the triggers to be admitted")
    for timestamp in await neighbour.redis.zrange(keys.open_runs(f"exp_{how}"), 0, -1):
        await neighbour.redis.publish(keys.CANCEL, json.dumps({"run_id": f"exp_{how}:{timestamp}"}))
    results = await neighbour.results(f"exp_{how}", count)
    assert {one["status"] for one in results} == {"cancelled"}


async def nothing_waits(redis: Any) -> bool:
    left = await redis.keys("fullsend:executor:open:*") + await redis.keys("fullsend:executor:blocked:*")
    queued = [await redis.xlen(keys.queue(priority)) for priority in PRIORITIES]
    return not left and not any(queued) and not await redis.exists(keys.retries(), keys.nudges())


async def test_finished_runs_leave_what_the_settings_say(serve: Serve, neighbour: Neighbour) -> None:
    await perform(serve, neighbour, RUNS, **KEPT)
    redis = neighbour.redis
    ttl_ms = {name: await redis.pttl(name) for name in await redis.keys("*")}
    of_runs = {name for name in ttl_ms if not name.startswith(("experiments:", "schedules:", "tools:"))}
    lasting = {name for name in of_runs if ttl_ms[name] == -1 and not name.startswith(keys.runs())}
    lists = {name: await redis.llen(name) for name in of_runs if name.startswith("metrics:")}
    logs = {name: await redis.xlen(name) for name in of_runs if name.startswith("fullsend:executor:logs:")}

    assert lasting | {keys.journal()} == LASTING - SCHEDULES  # which expires once it was tidied
    assert all(ttl_ms[name] <= 1_000_000 for name in of_runs if _is_kept_with_the_record(name))
    assert len(lists) == len(RUNS) + 2
    assert max(lists.values()) == KEPT["metrics_kept"]
    assert max(logs.values()) <= KEPT["log_lines_kept"] + A_NODE
    assert await redis.xlen(keys.journal()) <= KEPT["journal_kept"] + A_NODE


async def test_every_kind_of_end_is_recorded(serve: Serve, neighbour: Neighbour) -> None:
    few = dict.fromkeys(RUNS, 3)
    await perform(serve, neighbour, few)
    names = await neighbour.redis.keys("experiment_runs:*")
    records = [await neighbour.redis.hgetall(name) for name in names]
    ends = Counter((one["experiment_id"].removeprefix("exp_"), one["status"]) for one in records)

    del few["cancelled"]
    assert {how: ends[how, STATUS[how]] for how in few} == few
    assert ends["cancelled", "cancelled"] == 3
    assert not [end for end in ends if end[1] == "running"]


async def test_in_the_end_nothing_is_left_of_a_run(
    serve: Serve, neighbour: Neighbour, redis_url: str
) -> None:
    await perform(serve, neighbour, dict.fromkeys(RUNS, 2), run_retention=0.3)

    async def left() -> set[str]:
        names = set(await neighbour.redis.keys("*")) - LASTING
        of_experiments = ("experiments:", "tools:", "fullsend:executor:compiled:")
        of_triggers = ("fullsend:executor:admitted:", "fullsend:executor:request:")
        others = (*of_experiments, *of_triggers, keys.runs())
        return {name for name in names if not name.startswith(others)}

    async def nothing() -> bool:
        return not await left()

    await eventually(nothing, "the end of all that expires")
    async with store_on(redis_url, record_ms=300) as store:
        await store.history.tidy()
    assert await neighbour.redis.keys(f"{keys.runs()}*") == []
    short = [
        await neighbour.redis.ttl(name)
        for name in await neighbour.redis.keys("fullsend:executor:[ar]*")
        if name not in LASTING
    ]
    assert all(0 < ttl <= 24 * 3_600 for ttl in short)
    compiled = [await neighbour.redis.ttl(name) for name in await neighbour.redis.keys(keys.compiled("*"))]
    assert compiled
    assert all(0 < ttl <= 7 * 24 * 3_600 for ttl in compiled)


def _is_kept_with_the_record(name: str) -> bool:
    kinds = ("experiment_runs:", "metrics:", "fullsend:executor:logs:", "fullsend:executor:checkpoints:")
    return name.startswith(kinds)


# -- of the store -----------------------------------------------------------------------


async def test_metrics_are_kept_from_the_last_one_on(store: Store, redis: Any) -> None:
    await publish(redis, "flat")
    worker = Worker(store)
    await store.queue.create_group()
    run = await worker.begun()
    name = keys.metrics(run.claim.order.experiment_id)
    ttls = [await redis.pttl(name)]
    event = {"experiment_id": "exp:1", "run_id": run.id, "event": "x"}
    for report in (store.runs.emit(run.claim, [event]), run.retry()):
        await redis.persist(name)
        await report
        ttls.append(await redis.pttl(name))

    assert all(3_500_000 < ttl <= 3_600_000 for ttl in ttls)


async def test_turns_of_experiments_that_are_gone_are_forgotten(store: Store, redis: Any) -> None:
    now = await store.due_times.now_ms()
    days = {f"{number} days ago": now - number * 86_400_000 for number in (1, 29, 31, 400)}
    await redis.zadd(keys.turns(), days)

    await store.due_times.speedrun([Order("now", "speedrun")], 60, 1)

    assert await redis.zrange(keys.turns(), 0, -1) == ["29 days ago", "1 days ago", "now"]
