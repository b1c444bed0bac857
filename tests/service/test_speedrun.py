"""Speedrun: all experiments that are ready run in turn."""

import asyncio
from pathlib import Path

import pytest

from services.executor.scheduling import speedrun
from services.executor.scheduling.speedrun import Speedrun
from services.executor.store import Store, moment
from shared import keys
from tests.conftest import Neighbour, Serve, Tools, eventually

RESULTS = "fullsend:experiment_results"
TEN = [f"exp_{number}" for number in range(10)]

pytestmark = pytest.mark.usefixtures("echo")


async def everybody(neighbour: Neighbour, count: int) -> list[dict[str, str]]:
    """All results so far, once each of the ten has `count`."""
    for one in TEN:
        await neighbour.results(one, count)
    return [message for channel, message in neighbour.heard if channel == RESULTS]


def queued_ms(results: list[dict[str, str]]) -> list[int]:
    """When the runs were queued, in order."""
    return sorted(int(one["run_id"].rpartition(":")[2].partition("-")[0]) for one in results)


def first_turns(results: list[dict[str, str]]) -> list[str]:
    """Who had the first ten turns: nobody has a second one before all have had their first."""
    in_order = sorted(results, key=lambda one: moment(one["run_id"]))
    return [one["experiment_id"] for one in in_order[: len(TEN)]]


@pytest.fixture
async def ten(neighbour: Neighbour) -> list[str]:
    """Ten experiments that are ready."""
    for one in TEN:
        await neighbour.publish(one, "echo")
    return TEN


async def test_ten_experiments_all_get_their_turn(serve: Serve, neighbour: Neighbour, ten: list[str]) -> None:
    async with serve(schedule_mode="speedrun", speedrun_interval=0.1, speedrun_max_per_cycle=3):
        results = await everybody(neighbour, 2)

    assert sorted(first_turns(results)) == sorted(ten)


async def test_a_cycle_takes_no_more_than_it_may(serve: Serve, neighbour: Neighbour, ten: list[str]) -> None:
    async with serve(schedule_mode="speedrun", speedrun_interval=0.2, speedrun_max_per_cycle=4):
        times = queued_ms(await everybody(neighbour, 1))

    assert [later - one for one, later in zip(times, times[4:], strict=False) if later - one < 195] == []


async def test_two_services_share_their_cycles(serve: Serve, neighbour: Neighbour, ten: list[str]) -> None:
    settings = {"schedule_mode": "speedrun", "speedrun_interval": 0.2, "speedrun_max_per_cycle": 4}

    async with serve(**settings), serve(**settings):
        results = await everybody(neighbour, 2)

    times = queued_ms(results)
    assert sorted(first_turns(results)) == sorted(ten)
    assert [later - one for one, later in zip(times, times[4:], strict=False) if later - one < 195] == []


async def test_speedrun_leaves_experiments_that_are_not_ready_alone(
    serve: Serve, neighbour: Neighbour
) -> None:
    for state in ("draft", "paused", "archived", "running"):
        await neighbour.publish(f"exp_{state}", "echo", state=state)
    await neighbour.publish("exp_ready", "echo")

    async with serve(schedule_mode="speedrun", speedrun_interval=0.05):
        await neighbour.results("exp_ready", 3)

    assert {message["experiment_id"] for _, message in neighbour.heard} == {"exp_ready"}


async def test_speedrun_does_not_start_what_still_runs(
    serve: Serve, neighbour: Neighbour, tools: Tools, tmp_path: Path
) -> None:
    until = str(tmp_path / "go")
    tools(
        "hold",
        f"""
        import os, time

        def hold():
            while not os.path.exists({until!r}):
                time.sleep(0.01)
        """,
    )
    await neighbour.publish("exp_slow", "hold")
    await neighbour.publish("exp_quick", "echo")

    async with serve(schedule_mode="speedrun", speedrun_interval=0.05):
        await neighbour.events("exp_slow", "run_started")
        await neighbour.results("exp_quick", 5)
        begun = [one for one in neighbour.heard_of("exp_slow", "fullsend:metrics") if "attempt" in one]
        (tmp_path / "go").touch()
        await neighbour.result("exp_slow")

    assert len(begun) == 1


async def test_an_experiment_that_fails_gets_its_next_turn(
    serve: Serve, neighbour: Neighbour, tools: Tools
) -> None:
    tools("fail", "def fail():\n    raise ValueError('oh')\n")
    await neighbour.publish("exp_1", "fail")

    async with serve(schedule_mode="speedrun", speedrun_interval=0.05):
        results = await neighbour.results("exp_1", 2)

    assert {one["error_type"] for one in results} == {"ValueError"}


async def test_an_experiment_published_meanwhile_gets_a_turn(serve: Serve, neighbour: Neighbour) -> None:
    async with serve(schedule_mode="speedrun", speedrun_interval=0.05):
        await neighbour.publish("exp_late", "echo")
        result = await neighbour.result("exp_late")

    assert result["trigger"] == "speedrun"


async def test_a_new_experiment_needn_t_wait_for_the_next_cycle_while_turns_are_left(
    serve: Serve, neighbour: Neighbour, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speedrun, "PASS_SECONDS", 0.05)
    await neighbour.publish("exp_1", "echo")

    async with serve(schedule_mode="speedrun", speedrun_interval=600, speedrun_max_per_cycle=3):
        await neighbour.result("exp_1")
        await neighbour.publish("exp_2", "echo", state="paused")
        await neighbour.redis.set("experiments:exp_3", '{"state": "ready"}')
        refused = await neighbour.result("exp_3")
        await neighbour.publish("exp_4", "echo")
        result = await neighbour.result("exp_4")

    assert refused["error_type"] == "ContractError"
    assert (result["trigger"], result["status"]) == ("speedrun", "success")
    assert neighbour.heard_of("exp_2", RESULTS) == []


async def test_what_can_not_be_read_is_told_once_for_each_content(serve: Serve, neighbour: Neighbour) -> None:
    redis = neighbour.redis
    await redis.set("experiments:exp_text", '{"state": "ready", "execution": {"params": {}}}')
    await redis.hset("experiments:exp_hash", mapping={"tool": "../x", "state": "run"})
    await redis.hset("experiments:exp_paused", mapping={"tool": "../x", "state": "paused"})
    await redis.set("experiments:exp_1:results", '{"emails": 5}')
    await redis.hset("experiments:exp_1:totals", "emails", "5")
    await neighbour.publish("exp_good", "echo")
    settings = {"schedule_mode": "speedrun", "speedrun_interval": 0.05}

    async with serve(**settings), serve(**settings):
        told = [await neighbour.result(name) for name in ("exp_text", "exp_hash")]
        await neighbour.results("exp_good", 3)
        await redis.hset("experiments:exp_hash", "tool", "../y")
        second = await neighbour.result("exp_hash", 2)
        await neighbour.results("exp_good", 6)
    async with serve(**settings):
        await neighbour.results("exp_good", 9)

    assert [one["error_type"] for one in (*told, second)] == ["ContractError"] * 3
    assert "has no 'tool'" in told[0]["error"]
    assert "'../y'" in second["error"]
    heard = {message["experiment_id"] for _, message in neighbour.heard}
    assert heard == {"exp_text", "exp_hash", "exp_good"}
    counts = {name: len(neighbour.heard_of(name, RESULTS)) for name in ("exp_text", "exp_hash")}
    assert counts == {"exp_text": 1, "exp_hash": 2}


async def test_one_worker_in_a_cycle_looks_for_experiments(neighbour: Neighbour, store: Store) -> None:
    """With so many other keys that each look takes many commands, workers count their looks together."""
    redis = neighbour.redis
    await redis.mset({f"foreign:{number}": "x" for number in range(5_000)})
    await neighbour.publish("exp_1", "echo")

    async def commands(workers: int, cycles: int) -> dict[str, int]:
        await redis.config_resetstat()
        runs = [asyncio.create_task(Speedrun(store, 0.2, 1).run()) for _ in range(workers)]
        for _ in range(cycles):
            await eventually(lambda: redis.xlen(keys.queue("normal")), "a turn")
            await redis.delete(keys.queue("normal"), keys.open_runs("exp_1"))
        for run in runs:
            run.cancel()
        await asyncio.gather(*runs, return_exceptions=True)
        return {name: one["calls"] for name, one in (await redis.info("commandstats")).items()}

    one, many = await commands(1, 4), await commands(6, 4)

    assert one["cmdstat_scan"] >= 4 * 5
    assert many["cmdstat_scan"] <= 1.5 * one["cmdstat_scan"]
