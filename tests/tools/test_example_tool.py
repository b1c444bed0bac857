"""The example does what the contract's example does."""

import pytest

import shared.toolkit
from tests.tools.conftest import Load, RecordingToolkit


def test_example_returns_its_items_and_their_count(load: Load) -> None:
    result = load("example_tool").example_tool(param1="x", param2=2)

    assert result == {
        "items": [{"id": 0, "status": "done"}, {"id": 1, "status": "done"}],
        "count": 2,
        "success": True,
    }


def test_example_makes_ten_items_unless_told_otherwise(load: Load) -> None:
    assert load("example_tool").example_tool(param1="x")["count"] == 10


def test_example_reports_progress_after_each_item(load: Load, toolkit: RecordingToolkit) -> None:
    load("example_tool").example_tool(param1="x", param2=3)

    assert toolkit.steps == [(1, 3), (2, 3), (3, 3)]


def test_example_refuses_a_negative_count(load: Load) -> None:
    with pytest.raises(ValueError, match="param2 is -1"):
        load("example_tool").example_tool(param1="x", param2=-1)


def test_example_runs_by_hand_without_an_executor(load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    tool = load("example_tool")
    tool.toolkit = shared.toolkit  # type: ignore[attr-defined]
    tool.example_tool(param1="x", param2=1)

    assert capsys.readouterr().err == "progress 1/1 x: item 1 of 1\n"
