"""What a tool returns, as JSON: converted where one form is obvious, refused by place where none is."""

import json
from typing import Any

import pytest

from tests.conftest import Neighbour, Serve, Tools
from tests.service.conftest import assert_works

CONVERTED: dict[str, tuple[str, Any]] = {
    "None": ("None", None),
    "a tuple": ("(1, 'a')", [1, "a"]),
    "a set": ("{3, 1, 2}", [1, 2, 3]),
    "a datetime": ("datetime.datetime(2026, 2, 1, 9, 30)", "2026-02-01T09:30:00"),
    "a pydantic model": ("Model()", {"name": "model"}),
    "a numpy scalar": ("Scalar()", 2.5),
    "a dataclass": ("Point(1, 2)", {"x": 1, "y": 2}),
    "a path": ("pathlib.Path('a/b')", "a/b"),
    "keys that are numbers": ("{1: 'one'}", {"1": "one"}),
    "text beyond ASCII": ("'été \\U0001f680'", "été 🚀"),
}

CLASSES = """
import datetime, pathlib
from dataclasses import dataclass

class Model:
    def model_dump(self, mode="python"):
        return {"name": "model"} if mode == "json" else {"name": object()}

class Scalar:
    dtype = "float64"
    def tolist(self):
        return 2.5
    def item(self):
        return 2.5

@dataclass
class Point:
    x: int
    y: int

def tool():
    return %s
"""


@pytest.mark.parametrize("kind", CONVERTED)
async def test_a_result_with_one_obvious_form_is_converted(
    serve: Serve, neighbour: Neighbour, tools: Tools, kind: str
) -> None:
    expression, expected = CONVERTED[kind]
    tools("tool", CLASSES % expression)
    await neighbour.publish("exp_1", "tool")

    async with serve():
        result = await neighbour.run("exp_1")

    assert result["status"] == "success", result
    assert json.loads((await neighbour.record(result["run_id"]))["result"]) == expected


@pytest.mark.usefixtures("echo")
@pytest.mark.parametrize(
    "expression", ["{'a': [0, b'x']}", "{'a': [0, float('nan')]}", "{'a': [0, object()]}"]
)
async def test_a_result_without_a_json_form_is_an_error_that_names_the_place(
    serve: Serve, neighbour: Neighbour, tools: Tools, expression: str
) -> None:
    tools("tool", f"def tool():\n    return {expression}\n")
    await neighbour.publish("exp_1", "tool")

    async with serve():
        result = await neighbour.run("exp_1")
        await assert_works(neighbour)

    assert result["error_type"] == "ToolResultError"
    assert "result['a'][1]" in result["error"]


REPORTS_FAILURE = """
def tool(retryable=False):
    return {"result": [1, 2], "success": False, "error": "quota used up", "retryable": retryable}
"""


async def test_a_result_that_reports_a_failure_ends_the_run_as_failed(
    serve: Serve, neighbour: Neighbour, tools: Tools
) -> None:
    tools("tool", REPORTS_FAILURE)
    await neighbour.publish("exp_1", "tool", backoff_min=0, backoff_max=0, max_attempts=2)
    returned = {"result": [1, 2], "success": False, "error": "quota used up", "retryable": False}

    async with serve(inline_artifact_max_bytes=10):
        once = await neighbour.run("exp_1")
        twice = await neighbour.run("exp_1", params={"retryable": True})
        [error, _] = await neighbour.events("exp_1", "error", 2)
    record, retried = [await neighbour.record(one["run_id"]) for one in (once, twice)]
    async with serve(reported_failures=False):
        off = await neighbour.run("exp_1")
    async with serve():
        inline = await neighbour.run("exp_1")
    shown = await neighbour.record(inline["run_id"])

    assert (once["type"], once["status"]) == ("experiment_failed", "failed")
    assert (once["error"], once["error_type"]) == ("quota used up", "ToolReportedError")
    assert (error["message"], error["error_type"]) == ("quota used up", "ToolReportedError")
    assert (record["status"], record["attempt"]) == ("failed", "1")
    assert record["result"] == record["partial_results"] == once["partial_results"]
    assert record["result"].startswith("cas://")
    assert (retried["error_type"], retried["attempt"]) == ("ToolRetryExhaustedError", "2")
    assert off["status"] == "success"
    assert json.loads(shown["result"]) == json.loads(shown["partial_results"]) == returned
    assert inline["partial_results"] == returned
    assert await neighbour.redis.hget("experiments:exp_1", "state") == "failed"
