"""A fault of the executor's own: no run is left without an end, and none is ended that could go on."""

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from services.executor.recovery import MAX_LOSSES
from services.executor.scheduling.speedrun import Speedrun
from services.executor.service import Service
from shared import keys
from tests.conftest import Neighbour, Serve, Tools, eventually
from tests.service.conftest import Work, assert_works

HOLD = """
    import os, time
    from shared import toolkit

    def hold(until: str):
        toolkit.partial("held")
        toolkit.progress(0)
        while not os.path.exists(until):
            time.sleep(0.01)
        return {"attempt": toolkit.run.attempt}
"""


@pytest.fixture
async def go(neighbour: Neighbour, tools: Tools, tmp_path: Path) -> Path:
    """Runs of `exp_1` last until this file exists."""
    tools("hold", HOLD)
    await neighbour.publish("exp_1", "hold", params={"until": str(tmp_path / "go")})
    return tmp_path / "go"


@pytest.mark.usefixtures("echo")
async def test_a_fault_in_a_run_ends_that_run_with_its_name(
    serve: Serve, neighbour: Neighbour, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("ours")

    await neighbour.publish("exp_1", "echo")

    async with serve():
        with monkeypatch.context() as patched:
            patched.setattr("services.executor.runner.judge", broken)
            result = await neighbour.run("exp_1")
        await assert_works(neighbour)

    assert (result["error_type"], result["error"]) == ("ZeroDivisionError", "ours")
    assert (await neighbour.record(result["run_id"]))["status"] == "failed"
    assert await neighbour.redis.hget("experiments:exp_1", "state") == "failed"


async def test_a_service_that_breaks_gives_its_runs_back(
    serve: Serve, neighbour: Neighbour, go: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = asyncio.Event()

    async def broken(_: Speedrun) -> float:
        await fault.wait()
        raise ZeroDivisionError("ours")

    with monkeypatch.context() as patched, pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        patched.setattr(Speedrun, "_cycle", broken)
        async with serve(schedule_mode="trigger,speedrun") as service:
            await neighbour.trigger({"experiment_id": "exp_1"})
            await neighbour.events("exp_1", "progress")
            fault.set()
            await eventually(lambda: _holds_nothing(service))
    go.touch()
    async with serve():
        result = await neighbour.result("exp_1")

    assert (result.get("status"), result.get("result_summary")) == ("success", {"attempt": 1})


async def _holds_nothing(service: Service) -> bool:
    return not service.running


@pytest.mark.usefixtures("go")
async def test_a_run_over_which_workers_die_again_and_again_is_buried_with_all_that_is_known(
    work: Work, serve: Serve, neighbour: Neighbour
) -> None:
    for death in range(1, MAX_LOSSES + 1):
        async with work() as one:
            await one.said("triggers.listening")
            if death == 1:
                await neighbour.trigger({"experiment_id": "exp_1"})
            await neighbour.events("exp_1", "progress", death)
            one.signal(signal.SIGKILL)
            await one.ended()

    async with serve():
        result = await neighbour.result("exp_1")

    record = await neighbour.record(result["run_id"])
    losses = json.loads(record["attempts"])
    assert (result["status"], result["error_type"]) == ("lost", "WorkerDiedError")
    assert record["status"] == "lost"
    assert json.loads(record["partial_results"]) == result["partial_results"] == ["held"]
    assert f"the last of {MAX_LOSSES} allowed times" in record["error"]
    assert [(one["attempt"], one["error_type"]) for one in losses] == [(1, "WorkerDiedError")] * MAX_LOSSES
    assert len({one["error"] for one in losses}) == MAX_LOSSES  # each names its worker
    assert len(neighbour.heard_of("exp_1", keys.RESULTS)) == 1
    assert await neighbour.redis.hget("experiments:exp_1", "state") == "failed"
