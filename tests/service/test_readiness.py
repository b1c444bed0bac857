"""The first run of a schedule finds a process that has its tool imported, however long that takes."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from shared import keys
from tests.conftest import Neighbour, Serve, Tools, eventually

HEAVY = """
    import time

    BEGUN = time.time()
    time.sleep(0.2)

    def heavy():
        return {"begun": BEGUN}
"""
SOON_SECONDS = 4


@pytest.mark.parametrize("isolation", ["warm", "fork"])
async def test_a_process_was_there_before_the_slot(
    isolation: str, serve: Serve, neighbour: Neighbour, tools: Tools
) -> None:
    tools("heavy", HEAVY)
    await neighbour.publish("exp_1", "heavy", isolation=isolation)
    async with serve():  # what is registered needs no process when the next one starts

        async def registered() -> Any:
            return await neighbour.redis.exists(keys.tool("heavy"))

        await eventually(registered, "the tool")

    slot = (datetime.now(UTC) + timedelta(seconds=SOON_SECONDS)).replace(microsecond=0)
    await neighbour.redis.set("schedules:exp_1", f"{slot:%M %H} * * * {slot:%S}")
    async with serve(schedule_mode="cron"):
        result = await neighbour.result("exp_1")

    assert result["result_summary"]["begun"] < slot.timestamp()
