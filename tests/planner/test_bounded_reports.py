"""What a tool reports to a planner is bounded and masked, as what it reports to an executor."""

import pytest

from services.executor.isolation.calls import Event, LogLine, Metric, Partial, Progress
from services.executor.metrics import PARTIALS_KEPT_BYTES
from services.executor.outcome import Status
from services.planner.aggregation import AggregationTask
from services.planner.execution import Execution, RunOptions
from shared.messages import Policy
from tests.planner.conftest import MakeLaboratory

HEADER = '# /// script\n# [tool.fullsend]\n# environment = ["LAB_KEY"]\n# ///\n'
TOOL = """
import os
from shared import toolkit

def tool():
    return 1

def loud():
    toolkit.progress(1, 2, "p" * 100_000)
    toolkit.metric("m" * 100_000, 1, tag="t" * 100_000, **{f"tag_{n}": "t" * 500 for n in range(100)})
    for number in range(12):
        toolkit.partial([number, "x" * 1_000_000])
    raise ValueError("after all that")

def aggregate(replicates, target_data):
    key = os.environ["LAB_KEY"]
    print("the key is", key)
    toolkit.progress(1, 2, key)
    toolkit.metric(key, 1, tag=key)
    return {"loss": 0}
"""
SECRET = "hunter2hunter2"


async def test_what_a_tool_reports_to_a_planner_has_the_bounds_of_an_executor(
    laboratory: MakeLaboratory,
) -> None:
    lab = await laboratory(inline_max_bytes=10 * PARTIALS_KEPT_BYTES)
    lab.tool("loud", TOOL)
    heard: list[Event] = []

    call = Execution("loud", {}, RunOptions("run-1", Policy(timeout_seconds=30)))
    result = await lab.backend.run(call, report=heard.append)

    [progress] = [one for one in heard if isinstance(one, Progress)]
    [metric] = [one for one in heard if isinstance(one, Metric)]
    assert result.status is Status.FAILED
    assert "(the first 8 partial results are kept, 4 more are not)" in str(result.error)
    assert [one.item[0] for one in heard if isinstance(one, Partial)] == list(range(8))
    assert len(progress.message) < 1_100
    assert len(metric.name) < 300
    assert len(str(metric.tags)) < 5_000
    assert [one.text for one in heard if isinstance(one, LogLine) and one.stream == "executor"] == [
        "the message of a progress report has 1,000 characters at most and was cut",
        "the name of a metric has 200 characters at most and was cut",
        "the value of a tag has 1,000 characters at most and was cut",
        "a metric has 50 tags and 4,096 bytes of tags at most; some are left out",
    ]


async def test_what_an_aggregation_reports_is_masked(
    laboratory: MakeLaboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAB_KEY", SECRET)
    lab = await laboratory(allowed=("LAB_KEY",))
    lab.tool("tool", HEADER + TOOL)
    heard: list[Event] = []

    task = AggregationTask("tool", "aggregate", [await lab.run("tool")])
    await lab.aggregator.aggregate(task, heard.append)

    lines = [one.text for one in heard if isinstance(one, LogLine)]
    assert lines == ["the key is ***"]
    assert Progress(1, 2, "***") in heard
    assert Metric("***", 1, {"tag": "***"}) in heard
    assert SECRET not in str(heard)
