"""What a tool is given by name is seen by the tool and by nobody else."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Neighbour, Serve

TELLTALE = """# /// script
# [tool.fullsend]
# environment = ["TELLTALE_KEY"]
# ///
import os


def telltale(fail: bool):
    key = os.environ["TELLTALE_KEY"]
    print("the key is", key)
    if fail:
        raise ValueError(f"no good: {key}")
    return {"key": key, "redis": os.environ.get("REDIS_URL"), "other": os.environ.get("OTHER_KEY")}
"""


@pytest.mark.parametrize("fail", ["true", "false"])
async def test_a_value_that_is_passed_is_masked_in_records_messages_and_logs(
    fail: str,
    serve: Serve,
    neighbour: Neighbour,
    tools: Callable[[str, str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TELLTALE_KEY", "sk-very-secret")
    monkeypatch.setenv("OTHER_KEY", "also-secret")
    monkeypatch.setenv("REDIS_URL", "redis://elsewhere")
    tools("telltale", TELLTALE)
    fields = {"tool": "telltale", "params": f'{{"fail": {fail}}}'}
    await neighbour.redis.hset("experiments:exp_1", mapping=fields)

    async with serve():
        await neighbour.trigger({"experiment_id": "exp_1"})
        result = await neighbour.result("exp_1")
    record = await neighbour.record(result["run_id"])
    lines = await neighbour.redis.xrange(f"fullsend:executor:logs:{result['run_id']}")

    everything = f"{neighbour.heard} {record} {lines}"
    assert "sk-very-secret" not in everything
    assert "also-secret" not in everything
    assert "elsewhere" not in everything
    assert "the key is ***" in [line["text"] for _, line in lines]
    assert "***" in (record["error"] if fail == "true" else record["result"])
