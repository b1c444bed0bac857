"""An experiment's `state`: what the executor writes, and what it leaves to others."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Neighbour, Serve, Tools, eventually

HOLD = """
    import time
    from pathlib import Path
    from shared import toolkit

    def hold(until: str, end: str = ""):
        toolkit.progress(0)
        while not Path(until).exists():
            time.sleep(0.01)
        if end:
            raise ValueError(end)
"""

Write = Callable[[Neighbour, dict[str, Any]], Any]


async def as_hash(neighbour: Neighbour, params: dict[str, Any]) -> None:
    await neighbour.publish("exp_1", "hold", params=params)


async def as_string(neighbour: Neighbour, params: dict[str, Any]) -> None:
    document = {"id": "exp_1", "owner": {"name": "été"}, "execution": {"tool": "hold", "params": params}}
    await neighbour.redis.set("experiments:exp_1", json.dumps(document))


async def state(neighbour: Neighbour) -> str:
    """The experiment's state, whichever shape it has."""
    if await neighbour.redis.type("experiments:exp_1") == "string":
        return str(json.loads(await neighbour.redis.get("experiments:exp_1"))["state"])
    return str(await neighbour.redis.hget("experiments:exp_1", "state"))


@pytest.mark.parametrize("write", [as_hash, as_string])
@pytest.mark.parametrize(("end", "final"), [("", "run"), ("oh", "failed")])
async def test_the_state_is_running_and_then_says_how_it_ended(
    serve: Serve, neighbour: Neighbour, tools: Tools, tmp_path: Path, write: Write, end: str, final: str
) -> None:
    tools("hold", HOLD)
    await write(neighbour, {"until": str(tmp_path / "go"), "end": end})

    async with serve():
        await neighbour.trigger({"experiment_id": "exp_1"})
        await neighbour.events("exp_1", "progress")
        during = await state(neighbour)
        (tmp_path / "go").touch()
        await neighbour.result("exp_1")

    assert (during, await state(neighbour)) == ("running", final)


async def test_other_members_of_a_document_are_kept(
    serve: Serve, neighbour: Neighbour, tools: Tools, tmp_path: Path
) -> None:
    tools("hold", HOLD)
    (tmp_path / "go").touch()
    await as_string(neighbour, {"until": str(tmp_path / "go")})
    before = json.loads(await neighbour.redis.get("experiments:exp_1"))

    async with serve():
        await neighbour.run("exp_1")

    after = json.loads(await neighbour.redis.get("experiments:exp_1"))
    assert after == before | {"state": "run"}


@pytest.mark.parametrize("write", [as_hash, as_string])
async def test_a_state_that_somebody_changed_meanwhile_stays(
    serve: Serve, neighbour: Neighbour, tools: Tools, tmp_path: Path, write: Write
) -> None:
    tools("hold", HOLD)
    await write(neighbour, {"until": str(tmp_path / "go")})

    async with serve():
        await neighbour.trigger({"experiment_id": "exp_1"})
        await neighbour.events("exp_1", "progress")
        if write is as_hash:
            await neighbour.redis.hset("experiments:exp_1", "state", "paused")
        else:
            text = await neighbour.redis.get("experiments:exp_1")
            await neighbour.redis.set("experiments:exp_1", text.replace('"running"', '"paused"'))
        (tmp_path / "go").touch()
        result = await neighbour.result("exp_1")

    assert (result["status"], await state(neighbour)) == ("success", "paused")


@pytest.mark.parametrize("write", [as_hash, as_string])
@pytest.mark.parametrize("end", ["", "oh"])
async def test_a_trigger_leaves_a_paused_experiment_paused(
    serve: Serve, neighbour: Neighbour, tools: Tools, tmp_path: Path, write: Write, end: str
) -> None:
    tools("hold", HOLD)
    (tmp_path / "go").touch()
    await write(neighbour, {"until": str(tmp_path / "go"), "end": end})
    if write is as_hash:
        await neighbour.redis.hset("experiments:exp_1", "state", "paused")
    else:
        document = json.loads(await neighbour.redis.get("experiments:exp_1")) | {"state": "paused"}
        await neighbour.redis.set("experiments:exp_1", json.dumps(document))

    async with serve():
        result = await neighbour.run("exp_1")

    assert (result.get("status"), await state(neighbour)) == ("failed" if end else "success", "paused")


async def test_an_experiment_deleted_meanwhile_stays_deleted(
    serve: Serve, neighbour: Neighbour, tools: Tools, tmp_path: Path
) -> None:
    tools("hold", HOLD)
    await as_hash(neighbour, {"until": str(tmp_path / "go")})

    async with serve():
        await neighbour.trigger({"experiment_id": "exp_1"})
        await neighbour.events("exp_1", "progress")
        await neighbour.redis.delete("experiments:exp_1")
        (tmp_path / "go").touch()
        result = await neighbour.result("exp_1")

    assert result["status"] == "success"
    assert not await neighbour.redis.exists("experiments:exp_1")


async def test_a_state_is_running_until_the_last_of_two_runs_ends(
    serve: Serve, neighbour: Neighbour, tools: Tools, tmp_path: Path
) -> None:
    tools("hold", HOLD)
    await neighbour.publish("exp_1", "hold")
    (tmp_path / "first").touch()

    async with serve():
        await neighbour.trigger({"experiment_id": "exp_1", "params": {"until": str(tmp_path / "second")}})
        await neighbour.events("exp_1", "progress")
        await neighbour.run("exp_1", params={"until": str(tmp_path / "first")})
        between = await state(neighbour)
        (tmp_path / "second").touch()
        await neighbour.result("exp_1", 2)
        await eventually(lambda: _is_run(neighbour))

    assert between == "running"


async def _is_run(neighbour: Neighbour) -> bool:
    return await state(neighbour) == "run"
