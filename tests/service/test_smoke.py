"""The main job, end to end."""

import json
from collections.abc import Callable
from pathlib import Path

from tests.conftest import Neighbour, Serve


async def test_a_trigger_runs_the_experiment(
    serve: Serve, neighbour: Neighbour, tools: Callable[[str, str], Path]
) -> None:
    tools("double", "def double(number: int) -> dict:\n    return {'twice': number * 2}\n")
    await neighbour.redis.hset("experiments:exp_1", mapping={"tool": "double", "params": '{"number": 4}'})

    async with serve():
        await neighbour.trigger({"experiment_id": "exp_1"})
        result = await neighbour.result("exp_1")

    assert result["type"] == "experiment_completed"
    assert result["result_summary"] == {"twice": 8}
    record = await neighbour.record(result["run_id"])
    assert json.loads(record["result"]) == {"twice": 8}
    assert await neighbour.redis.hget("experiments:exp_1", "state") == "run"
