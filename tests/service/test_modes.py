"""Modes side by side, and runs side by side."""

from pathlib import Path

import pytest

from tests.conftest import Neighbour, Serve, Tools
from tests.service.conftest import assert_works

pytestmark = pytest.mark.usefixtures("echo")

CROWD = """
    import os, time

    def crowd(folder: str):
        mine = os.path.join(folder, str(time.monotonic_ns()))
        open(mine, "w").close()
        full = os.path.join(os.path.dirname(folder), "full")
        while not os.path.exists(full):
            if len(os.listdir(folder)) >= 3:
                open(full, "w").close()
            time.sleep(0.01)
        time.sleep(0.05)
        there = len(os.listdir(folder))
        os.unlink(mine)
        return there
"""


async def test_all_modes_work_together(serve: Serve, neighbour: Neighbour) -> None:
    await neighbour.publish("exp_trigger", "echo", state="paused")
    await neighbour.publish("exp_speedrun", "echo")
    await neighbour.redis.set("schedules:exp_cron", "* * * * * *")

    async with serve(schedule_mode="trigger,cron,speedrun", speedrun_interval=0.1):
        triggered = await neighbour.run("exp_trigger")
        taken = await neighbour.result("exp_speedrun")
        due = await neighbour.result("exp_cron")  # it does not exist, so that only cron speaks of it

    assert [one["trigger"] for one in (triggered, taken, due)] == ["trigger", "speedrun", "cron"]


@pytest.mark.parametrize("mode", ["cron", "speedrun"])
async def test_without_the_mode_nobody_listens_for_triggers(
    serve: Serve, neighbour: Neighbour, mode: str
) -> None:
    async with serve(schedule_mode=mode):
        heard_by = await neighbour.trigger({"experiment_id": "exp_1"})

    assert heard_by == 0


async def test_no_more_run_at_once_than_the_settings_allow(
    serve: Serve, neighbour: Neighbour, tools: Tools, tmp_path: Path
) -> None:
    tools("crowd", CROWD)
    (tmp_path / "crowd").mkdir()
    await neighbour.publish("exp_1", "crowd", params={"folder": str(tmp_path / "crowd")})

    async with serve(concurrency=3):
        for _ in range(12):
            await neighbour.trigger({"experiment_id": "exp_1"})
        results = await neighbour.results("exp_1", 12)

    assert max(one["result_summary"]["value"] for one in results) == 3


async def test_a_slow_tool_holds_up_nobody_else(
    serve: Serve, neighbour: Neighbour, tools: Tools, tmp_path: Path
) -> None:
    until = str(tmp_path / "go")
    tools(
        "slow",
        f"""
        import os, time

        def slow():
            while not os.path.exists({until!r}):
                time.sleep(0.01)
        """,
    )
    await neighbour.publish("exp_slow", "slow")

    async with serve(concurrency=2):
        await neighbour.trigger({"experiment_id": "exp_slow"})
        await neighbour.events("exp_slow", "run_started")
        for _ in range(3):
            await assert_works(neighbour)
        before = neighbour.heard_of("exp_slow", "fullsend:experiment_results")
        (tmp_path / "go").touch()
        await neighbour.result("exp_slow")

    assert before == []


async def test_a_hanging_import_holds_up_nobody_else(
    serve: Serve, neighbour: Neighbour, tools: Tools
) -> None:
    tools("stuck", "import time\ntime.sleep(600)\n\ndef stuck():\n    pass\n")
    await neighbour.publish("exp_stuck", "stuck", timeout_seconds=600)

    async with serve(concurrency=2, shutdown_grace=0):
        await neighbour.trigger({"experiment_id": "exp_stuck"})
        await assert_works(neighbour)
        before = neighbour.heard_of("exp_stuck", "fullsend:experiment_results")

    assert before == []
