"""A due time that comes while the last run still runs is skipped, queued or run beside it."""

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Neighbour, Serve, Tools

HOLD = """
    import time
    from pathlib import Path
    from shared import toolkit

    def hold(until: str):
        toolkit.progress(0)
        while not Path(until).exists():
            time.sleep(0.01)
"""


@pytest.fixture
async def go(neighbour: Neighbour, tools: Tools, echo: Path, tmp_path: Path) -> Path:
    """Runs of `exp_1` last until this file exists; `exp_tick` ticks beside them."""
    tools("hold", HOLD)
    await neighbour.redis.set("schedules:exp_1", "* * * * * *")
    await neighbour.publish("exp_tick", "echo")
    await neighbour.redis.set("schedules:exp_tick", "* * * * * *")
    return tmp_path / "go"


async def publish(neighbour: Neighbour, go: Path, **policy: Any) -> None:
    await neighbour.publish("exp_1", "hold", params={"until": str(go)}, **policy)


async def due_times_pass(neighbour: Neighbour, count: int) -> None:
    """Wait for that many more due times."""
    heard = len(neighbour.heard_of("exp_tick", "fullsend:experiment_results"))
    await neighbour.results("exp_tick", heard + count)


def begun(neighbour: Neighbour) -> int:
    """How many runs have begun."""
    events = neighbour.heard_of("exp_1", "fullsend:metrics")
    return len([one for one in events if one["event"] == "run_started"])


async def test_a_due_time_is_skipped_while_the_last_run_still_runs(
    serve: Serve, neighbour: Neighbour, go: Path
) -> None:
    await publish(neighbour, go)

    async with serve(schedule_mode="cron"):
        await neighbour.events("exp_1", "progress")
        await due_times_pass(neighbour, 2)
        during = begun(neighbour)
        await neighbour.redis.delete("schedules:exp_1")
        go.touch()
        await neighbour.result("exp_1")

    assert during == 1


async def test_a_queued_due_time_waits_for_the_last_run(serve: Serve, neighbour: Neighbour, go: Path) -> None:
    await publish(neighbour, go, overlap="queue")

    async with serve(schedule_mode="cron"):
        await neighbour.events("exp_1", "progress")
        await due_times_pass(neighbour, 2)
        during = begun(neighbour)
        go.touch()
        first, second = await neighbour.results("exp_1", 2)

    records = [await neighbour.record(one["run_id"]) for one in (first, second)]
    assert during == 1
    assert records[0]["scheduled_for"] < records[1]["scheduled_for"]


async def test_runs_may_be_allowed_to_overlap(serve: Serve, neighbour: Neighbour, go: Path) -> None:
    await publish(neighbour, go, overlap="allow")

    async with serve(schedule_mode="cron"):
        await neighbour.events("exp_1", "progress", 2)
        before = neighbour.heard_of("exp_1", "fullsend:experiment_results")
        go.touch()
        await neighbour.results("exp_1", 2)

    assert before == []
