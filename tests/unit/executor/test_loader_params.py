"""Parameters are compared with a tool's signature before it is called."""

from pathlib import Path

import pytest

from services.executor.isolation.calls import Description, Module
from services.executor.loader import Tool
from services.executor.policy import ToolNeeds
from shared.errors import ToolParameterError


def tool(required: tuple[str, ...] = (), known: tuple[str, ...] = (), any_others: bool = False) -> Tool:
    schema = {
        "properties": {name: {} for name in known},
        "required": list(required),
        "additionalProperties": any_others,
    }
    return Tool(
        Module("a_tool", Path("a_tool.py"), "d"),
        ToolNeeds(),
        Description("a_tool", "a_tool", 1, "sync", "", schema),
    )


def test_matching_parameters_are_accepted() -> None:
    tool().check({})
    tool(("a",), ("a", "b")).check({"a": None})
    tool(("a",), ("a", "b")).check({"a": 1, "b": 2})
    tool(("a",), ("a",), any_others=True).check({"a": 1, "z": 2})


def test_every_missing_and_unknown_parameter_is_named() -> None:
    with pytest.raises(ToolParameterError) as refused:
        tool(("a", "b"), ("a", "b", "c")).check({"b": 1, "y": 2, "z": 3})

    assert str(refused.value) == (
        "a_tool: 'a' is missing, 'y' is unknown, 'z' is unknown; the tool takes: a, b, c"
    )


def test_a_tool_without_parameters_says_so() -> None:
    with pytest.raises(ToolParameterError, match=r"^a_tool: 'x' is unknown; the tool takes: no parameters$"):
        tool().check({"x": 1})
