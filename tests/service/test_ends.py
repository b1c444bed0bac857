"""Ends from outside the tool: the time limit, an archived experiment, the death of a worker."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from shared import keys
from tests.conftest import Neighbour, Serve, Tools
from tests.service.worker import nobody_is_left

LIMIT_SECONDS = 1.0
"""In which the tool has said what it had to say, also on a slow machine."""

HANG = """
    import os, signal, subprocess, time
    from shared import toolkit

    def hang(stubborn: bool = False):
        if stubborn:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        below = subprocess.Popen(["sleep", "600"], start_new_session=True)
        yield "kept"
        toolkit.progress(os.getpid(), below.pid)
        print("about to hang", flush=True)
        time.sleep(600)
"""

ONCE = """
    import time
    from shared import toolkit

    def once(until: str):
        toolkit.progress(toolkit.run.attempt)
        while True:
            try:
                open(until).close()
                return {"attempt": toolkit.run.attempt}
            except FileNotFoundError:
                time.sleep(0.01)
"""


async def below(neighbour: Neighbour) -> list[int]:
    """The processes of the run under way: the tool's and its child's."""
    [progress] = await neighbour.events("exp_1", "progress")
    return [progress["done"], progress["total"]]


# -- the time limit -----------------------------------------------------------------------


@pytest.fixture
async def timed_out(
    request: pytest.FixtureRequest, serve: Serve, neighbour: Neighbour, tools: Tools
) -> dict[str, Any]:
    """The result of a run that went over its time limit."""
    tools("hang", HANG)
    await neighbour.publish("exp_1", "hang", timeout_seconds=LIMIT_SECONDS)
    async with serve():
        return await neighbour.run("exp_1")


async def test_a_time_out_is_reported_as_such(neighbour: Neighbour, timed_out: dict[str, Any]) -> None:
    [error] = await neighbour.events("exp_1", "error")
    assert (timed_out["type"], timed_out["error_type"]) == ("experiment_failed", "ToolTimeoutError")
    assert (timed_out["status"], timed_out["timeout_seconds"]) == ("timeout", LIMIT_SECONDS)
    assert (error["error_type"], error["timeout_seconds"]) == ("ToolTimeoutError", LIMIT_SECONDS)
    assert (await neighbour.record(timed_out["run_id"]))["status"] == "timeout"
    assert await neighbour.redis.hget("experiments:exp_1", "state") == "failed"


async def test_a_time_out_keeps_what_the_tool_had_yielded(
    neighbour: Neighbour, timed_out: dict[str, Any]
) -> None:
    [partial] = await neighbour.events("exp_1", "partial_completion")
    assert (timed_out["partial_results"], partial["items_processed"]) == (["kept"], 1)


async def test_a_time_out_ends_the_tools_process_tree(
    neighbour: Neighbour, timed_out: dict[str, Any]
) -> None:
    await nobody_is_left(await below(neighbour))


async def test_the_record_of_a_time_out_says_where_the_tool_was(
    neighbour: Neighbour, timed_out: dict[str, Any]
) -> None:
    exit_ = json.loads((await neighbour.record(timed_out["run_id"]))["exit"])
    assert "in hang" in exit_["stacks"]
    assert "about to hang" in exit_["last_lines"]


async def test_a_tool_that_ignores_terminate_is_killed(
    serve: Serve, neighbour: Neighbour, tools: Tools
) -> None:
    tools("hang", HANG)
    await neighbour.publish("exp_1", "hang", params={"stubborn": True}, timeout_seconds=LIMIT_SECONDS)

    async with serve():
        result = await neighbour.run("exp_1")
        await nobody_is_left(await below(neighbour))

    assert json.loads((await neighbour.record(result["run_id"]))["exit"])["signal"] == "SIGKILL"


async def test_the_settings_time_limit_applies_where_nobody_chose_one(
    serve: Serve, neighbour: Neighbour, tools: Tools
) -> None:
    tools("hang", HANG)
    await neighbour.publish("exp_1", "hang")

    async with serve(tool_execution_timeout=0.4):
        result = await neighbour.run("exp_1")

    assert result["timeout_seconds"] == 0.4


# -- archiving -----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["hash", "string"])
async def test_archiving_an_experiment_ends_its_run(
    serve: Serve, neighbour: Neighbour, tools: Tools, shape: str
) -> None:
    tools("hang", HANG)
    await neighbour.publish("exp_1", "hang")

    async with serve(heartbeat_ttl=1.0):
        await neighbour.trigger({"experiment_id": "exp_1"})
        tree = await below(neighbour)
        async with asyncio.timeout(5):
            await _archive(neighbour, shape)
            result = await neighbour.result("exp_1")
        await nobody_is_left(tree)

    assert (result["status"], result["error_type"]) == ("cancelled", "RunCancelledError")
    assert result["partial_results"] == ["kept"]
    assert _ends(neighbour) == ["run_cancelled"]  # no `error`, on which an agent raises an alert
    assert await neighbour.record(result["run_id"]) | {"status": "cancelled"} == await neighbour.record(
        result["run_id"]
    )
    assert await _is_archived(neighbour, shape)


async def test_archiving_one_experiment_leaves_the_others_alone(
    serve: Serve, neighbour: Neighbour, tools: Tools, tmp_path: Path
) -> None:
    tools("hang", HANG)
    tools("once", ONCE)
    await neighbour.publish("exp_1", "hang")
    await neighbour.publish("exp_2", "once", params={"until": str(tmp_path / "go")})

    async with serve(heartbeat_ttl=1.0):
        for one in ("exp_1", "exp_2"):
            await neighbour.trigger({"experiment_id": one})
            await neighbour.events(one, "progress")
        await _archive(neighbour, "hash")
        await neighbour.result("exp_1")
        (tmp_path / "go").touch()
        result = await neighbour.result("exp_2")

    assert result["status"] == "success"


async def test_archiving_ends_a_run_that_waits_for_its_next_attempt(
    serve: Serve, neighbour: Neighbour, tools: Tools
) -> None:
    tools("fail", "def fail():\n    raise ConnectionError('reset')\n")
    await neighbour.publish("exp_1", "fail", backoff_min=600, backoff_max=600)

    async with serve():
        await neighbour.trigger({"experiment_id": "exp_1"})
        await neighbour.events("exp_1", "run_retrying")
        await _archive(neighbour, "hash")
        [waiting] = await neighbour.redis.zrange(keys.retries(), 0, -1)
        await neighbour.redis.zadd(keys.retries(), {waiting: 1})  # its time has come
        result = await neighbour.result("exp_1")

    assert (result["status"], result["error_type"]) == ("cancelled", "RunCancelledError")
    assert (await neighbour.record(result["run_id"]))["status"] == "cancelled"
    assert _ends(neighbour) == ["run_cancelled"]


def _ends(neighbour: Neighbour) -> list[str]:
    """The metric events that say how the run ended."""
    events = [one["event"] for one in neighbour.heard_of("exp_1", keys.METRICS)]
    return [event for event in events if event in ("error", "run_cancelled", "run_completed")]


async def _archive(neighbour: Neighbour, shape: str) -> None:
    if shape == "hash":
        await neighbour.redis.hset("experiments:exp_1", "state", "archived")
    else:  # a neighbour that writes the other shape took over
        await neighbour.redis.set(
            "experiments:exp_1", json.dumps({"state": "archived", "execution": {"tool": "hang"}})
        )


async def _is_archived(neighbour: Neighbour, shape: str) -> bool:
    if shape == "hash":
        return bool(await neighbour.redis.hget("experiments:exp_1", "state") == "archived")
    return bool(json.loads(await neighbour.redis.get("experiments:exp_1"))["state"] == "archived")
