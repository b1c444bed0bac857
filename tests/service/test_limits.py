"""Limits by key hold across all workers, priorities are kept, and nobody waits for ever."""

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from services.executor import recovery
from services.executor.store import RunCancellation, Store
from tests.conftest import Neighbour, Serve, eventually

Write = Callable[[str, str], Path]

SPAN = """
import os, time
def span(path: str, seconds: float = 0.0, name: str = "", until: str = "", starts: int = 0) -> dict:
    with open(path, "a") as file:
        print("+" + name, file=file, flush=True)
        while until and not os.path.exists(until) or open(path).read().count("+") < starts:
            time.sleep(0.01)
        time.sleep(seconds)
        print("-" + name, file=file, flush=True)
    return {}
"""


ITEMS = """
import time
from shared import toolkit
def items():
    yield 1
    yield 2
    toolkit.progress(2)
    time.sleep(60)
"""


async def _experiment(neighbour: Neighbour, name: str, params: dict[str, Any], **policy: str) -> None:
    fields = {"tool": "span", "params": json.dumps(params), **policy}
    await neighbour.redis.hset(f"experiments:{name}", mapping=fields)


def _most_at_once(path: Path) -> int:
    now = most = 0
    for line in path.read_text().splitlines():
        now += 1 if line[0] == "+" else -1
        most = max(most, now)
    return most


async def test_runs_that_share_a_key_are_no_more_at_once_than_it_allows(
    serve: Serve, neighbour: Neighbour, tools: Write, tmp_path: Path
) -> None:
    tools("span", SPAN)
    path = tmp_path / "spans"
    for name in ("exp_a", "exp_b"):
        params = {"path": str(path), "seconds": 0.05, "starts": 2}
        await _experiment(neighbour, name, params, max_concurrent="2", limit_key="account")

    async with serve(concurrency=6), serve(concurrency=6):
        for _ in range(6):
            await neighbour.trigger({"experiment_id": "exp_a"})
            await neighbour.trigger({"experiment_id": "exp_b"})
        await neighbour.results("exp_a", 6)
        await neighbour.results("exp_b", 6)

    assert _most_at_once(path) == 2


async def test_runs_under_a_rate_limit_begin_a_burst_at_once_and_then_at_its_pace(
    serve: Serve, neighbour: Neighbour, tools: Write, tmp_path: Path
) -> None:
    tools("span", SPAN)
    await _experiment(
        neighbour, "exp_rate", {"path": str(tmp_path / "spans")}, max_per_minute="300", burst="3"
    )

    async with serve():
        for _ in range(6):
            await neighbour.trigger({"experiment_id": "exp_rate"})
        begun = await neighbour.events("exp_rate", "run_started", 6)

    moments = sorted(event["timestamp"] for event in begun)
    assert moments[5] - moments[0] >= 3 * 0.2 - 0.05


async def test_a_tools_own_limit_holds_for_all_experiments_that_use_it(
    serve: Serve, neighbour: Neighbour, tools: Write, tmp_path: Path
) -> None:
    tools("span", "# /// script\n# [tool.fullsend]\n# max_concurrent = 1\n# ///\n" + SPAN)
    path = tmp_path / "spans"
    for number in range(5):
        await _experiment(neighbour, f"exp_{number}", {"path": str(path), "seconds": 0.05})

    async with serve():
        for number in range(5):
            await neighbour.trigger({"experiment_id": f"exp_{number}"})
        for number in range(5):
            await neighbour.result(f"exp_{number}")

    assert _most_at_once(path) == 1


async def test_urgent_runs_go_first_and_the_others_follow(
    serve: Serve, neighbour: Neighbour, tools: Write, tmp_path: Path, store: Store
) -> None:
    tools("span", SPAN)
    path = tmp_path / "spans"
    go = tmp_path / "go"
    await _experiment(neighbour, "exp_first", {"path": str(path), "until": str(go), "name": "first"})
    for priority in ("low", "normal", "high"):
        params = {"path": str(path), "name": priority}
        await _experiment(neighbour, f"exp_{priority}", params, priority=priority)

    async with serve(concurrency=1):
        await neighbour.trigger({"experiment_id": "exp_first"})
        await neighbour.events("exp_first", "run_started")
        for priority in ("low", "normal", "high"):
            for _ in range(8):
                await neighbour.trigger({"experiment_id": f"exp_{priority}"})
        await eventually(lambda: _are_waiting(store, 24), "all the others")
        go.touch()
        for priority in ("low", "normal", "high"):
            await neighbour.results(f"exp_{priority}", 8)

    order = [line[1:] for line in path.read_text().splitlines() if line.startswith("+")][1:]
    high, normal, low = (_mean_place(order, priority) for priority in ("high", "normal", "low"))
    assert high < normal < low
    assert (await store.queue.depth()).waiting == 0


async def test_a_run_that_was_cancelled_while_it_waited_never_starts(
    serve: Serve, neighbour: Neighbour, tools: Write, tmp_path: Path, store: Store
) -> None:
    tools("span", SPAN)
    path = tmp_path / "spans"
    go = tmp_path / "go"
    await _experiment(neighbour, "exp_long", {"path": str(path), "until": str(go), "name": "long"})
    await _experiment(neighbour, "exp_wait", {"path": str(path), "name": "wait"})

    async with serve(concurrency=1):
        await neighbour.trigger({"experiment_id": "exp_long"})
        await neighbour.events("exp_long", "run_started")
        await neighbour.trigger({"experiment_id": "exp_wait"})
        [waiting] = await eventually(lambda: _open_runs(neighbour, "exp_wait"))
        answer = await recovery.cancel(store, f"exp_wait:{waiting}")
        result = await neighbour.result("exp_wait")
        go.touch()
        await neighbour.result("exp_long")
        await eventually(lambda: _is_empty(store))

    assert answer is RunCancellation.CANCELLED
    assert result["status"] == "cancelled"
    assert "+wait" not in path.read_text()


async def test_a_run_under_way_is_ended_by_a_message_and_keeps_what_it_had(
    serve: Serve, neighbour: Neighbour, tools: Write
) -> None:
    tools("items", ITEMS)
    await neighbour.redis.hset("experiments:exp_1", mapping={"tool": "items"})

    async with serve():
        await neighbour.trigger({"experiment_id": "exp_1"})
        [started] = await neighbour.events("exp_1", "progress")
        await neighbour.redis.publish("fullsend:executor:cancel", json.dumps({"run_id": started["run_id"]}))
        result = await neighbour.result("exp_1")

    record = await neighbour.record(started["run_id"])
    assert (record["status"], result["status"]) == ("cancelled", "cancelled")
    assert json.loads(record["partial_results"]) == [1, 2]


def _mean_place(order: list[str], priority: str) -> float:
    return statistics.mean(place for place, one in enumerate(order) if one == priority)


async def _open_runs(neighbour: Neighbour, name: str) -> list[str]:
    return list(await neighbour.redis.zrange(f"fullsend:executor:open:{name}", 0, -1))


async def _are_waiting(store: Store, count: int) -> bool:
    return (await store.queue.depth()).waiting == count


async def _is_empty(store: Store) -> bool:
    depth = await store.queue.depth()
    return depth.waiting + depth.held + depth.delayed == 0
