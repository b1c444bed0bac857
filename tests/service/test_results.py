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
