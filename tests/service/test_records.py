"""What is written and said about a run, held against the contract member by member."""

import json
import time
from datetime import UTC, datetime
from typing import Any

import pytest

from services.executor import runner
from tests.conftest import Neighbour, Serve, Tools

COUNTER = """
    from shared import toolkit

    def counter(limit: int):
        toolkit.progress(1, limit, "under way")
        toolkit.metric("emails_sent", 12, city="Lisbon")
        for number in range(limit):
            yield number
"""


@pytest.fixture
async def counted(serve: Serve, neighbour: Neighbour, tools: Tools) -> dict[str, Any]:
    """The result message of a run that reported everything that a tool can report."""
    tools("counter", COUNTER)
    await neighbour.publish("exp_1", "counter", params={"limit": 3}, state="ready")
    async with serve():
        return await neighbour.run("exp_1", triggered_by="orchestrator", request_id="r-1")


def without(members: dict[str, Any], *names: str) -> dict[str, Any]:
    """The other members."""
    return {name: value for name, value in members.items() if name not in names}


async def test_the_result_of_a_success_has_the_contracts_shape(counted: dict[str, Any]) -> None:
    assert without(counted, "run_id", "duration") == {
        "type": "experiment_completed",
        "experiment_id": "exp_1",
        "status": "success",
        "result_summary": {"count": 3},
        "trigger": "trigger",
        "request_id": "r-1",
    }
    assert counted["run_id"].startswith("exp_1:")
    assert counted["duration"] > 0


async def test_the_record_of_a_success_has_every_field(neighbour: Neighbour, counted: dict[str, Any]) -> None:
    record = await neighbour.record(counted["run_id"])
    assert {name: record[name] for name in ("status", "tool", "attempt", "trigger", "triggered_by")} == {
        "status": "completed",
        "tool": "counter",
        "attempt": "1",
        "trigger": "trigger",
        "triggered_by": "orchestrator",
    }
    assert json.loads(record["params"]) == {"limit": 3}
    assert json.loads(record["result"]) == [0, 1, 2]
    assert json.loads(record["result_summary"]) == {"count": 3}
    assert len(record["tool_digest"]) == 64
    assert record["worker"]
    assert not {"error", "error_type", "traceback", "partial_results", "exit"} & set(record)


async def test_the_times_of_a_record_are_in_order(neighbour: Neighbour, counted: dict[str, Any]) -> None:
    record = await neighbour.record(counted["run_id"])
    times = [
        datetime.fromisoformat(record[name])
        for name in ("queued_at", "started_at", "finished_at", "timestamp")
    ]
    assert times == sorted(times)
    assert times[2] == times[3]
    assert abs((datetime.now(UTC) - times[3]).total_seconds()) < 60
    assert 0 < float(record["duration_seconds"]) < 60


async def test_the_metric_events_have_the_contracts_shapes_in_order(
    neighbour: Neighbour, counted: dict[str, Any]
) -> None:
    events = neighbour.heard_of("exp_1", "fullsend:metrics")
    reported = sorted(events[1:3], key=lambda event: str(event["event"]))
    shown = [
        without(one, "experiment_id", "timestamp", "run_id") for one in [events[0], *reported, *events[3:]]
    ]
    assert without(shown[-1], "duration") == {"event": "run_completed"}
    assert shown[:-1] == [
        {"event": "run_started", "attempt": 1, "tool": "counter"},
        {"event": "metric", "name": "emails_sent", "value": 12, "emails_sent": 12, "city": "Lisbon"},
        {"event": "progress", "done": 1, "total": 3, "message": "under way"},
        {"event": "items_processed", "count": 3},
    ]
    assert shown[-1]["duration"] == pytest.approx(counted["duration"])


async def test_every_metric_event_says_whose_it_is_and_when(
    neighbour: Neighbour, counted: dict[str, Any]
) -> None:
    events = neighbour.heard_of("exp_1", "fullsend:metrics")
    assert {event["run_id"] for event in events} == {counted["run_id"]}
    assert all(isinstance(event["timestamp"], float) for event in events)
    assert all(abs(event["timestamp"] - time.time()) < 60 for event in events)


async def test_the_list_of_metrics_equals_what_was_published(
    neighbour: Neighbour, counted: dict[str, Any]
) -> None:
    stored = [json.loads(text) for text in await neighbour.redis.lrange("metrics:exp_1", 0, -1)]
    assert stored == neighbour.heard_of("exp_1", "fullsend:metrics")


async def test_a_record_is_kept_for_as_long_as_the_settings_say(
    serve: Serve, neighbour: Neighbour, tools: Tools
) -> None:
    tools("tool", "def tool():\n    return 1\n")
    await neighbour.publish("exp_1", "tool")

    async with serve(run_retention=3600):
        result = await neighbour.run("exp_1")

    left = await neighbour.redis.ttl(f"experiment_runs:{result['run_id']}")
    assert 3500 < left <= 3600


async def test_metrics_under_the_contracts_own_names_do_no_harm(
    serve: Serve, neighbour: Neighbour, tools: Tools
) -> None:
    tools(
        "tool",
        """
        from shared import toolkit

        def tool():
            for name in ("name", "value", "event", "run_id", "timestamp", "experiment_id", "self"):
                toolkit.metric(name, 1, kind="odd")
        """,
    )
    await neighbour.publish("exp_1", "tool")

    async with serve():
        result = await neighbour.run("exp_1")

    assert result["status"] == "success", result
    metrics = [one for one in neighbour.heard_of("exp_1", "fullsend:metrics") if one["event"] == "metric"]
    assert [one["kind"] for one in metrics] == ["odd"] * 7
    assert {one["run_id"] for one in metrics} == {result["run_id"]}


# -- failures --------------------------------------------------------------------------


async def test_the_result_of_a_failure_has_the_contracts_shape(
    serve: Serve, neighbour: Neighbour, tools: Tools
) -> None:
    tools("tool", "def tool():\n    raise ValueError('no such city')\n")
    await neighbour.publish("exp_1", "tool")

    async with serve():
        result = await neighbour.run("exp_1")
        [error] = await neighbour.events("exp_1", "error")

    assert without(result, "run_id", "duration") == {
        "type": "experiment_failed",
        "experiment_id": "exp_1",
        "status": "failed",
        "error": "no such city",
        "error_type": "ValueError",
        "trigger": "trigger",
    }
    assert without(error, "timestamp") == {
        "experiment_id": "exp_1",
        "run_id": result["run_id"],
        "event": "error",
        "message": "no such city",
        "error_type": "ValueError",
    }


async def test_the_record_of_a_failure_says_why(serve: Serve, neighbour: Neighbour, tools: Tools) -> None:
    tools("tool", "def tool():\n    raise ValueError('no such city')\n")
    await neighbour.publish("exp_1", "tool")

    async with serve():
        result = await neighbour.run("exp_1")

    record = await neighbour.record(result["run_id"])
    assert (record["status"], record["error"], record["error_type"]) == (
        "failed",
        "no such city",
        "ValueError",
    )
    assert record["traceback"].startswith("Traceback (most recent call last):")
    assert not {"result", "result_summary"} & set(record)


async def test_partial_results_of_an_exception_are_kept(
    serve: Serve, neighbour: Neighbour, tools: Tools
) -> None:
    tools(
        "tool",
        """
        class Bounced(Exception):
            partial_results = [{"to": "a@example.org"}, {"to": "b@example.org"}]

        def tool():
            raise Bounced("the third address")
        """,
    )
    await neighbour.publish("exp_1", "tool")

    async with serve():
        result = await neighbour.run("exp_1")
        [partial] = await neighbour.events("exp_1", "partial_completion")

    sent = [{"to": "a@example.org"}, {"to": "b@example.org"}]
    assert result["partial_results"] == sent
    assert json.loads((await neighbour.record(result["run_id"]))["partial_results"]) == sent
    assert partial["items_processed"] == 2


class Clock:
    """The time of day, set back by a minute each time that somebody looks."""

    monotonic = staticmethod(time.monotonic)

    def __init__(self) -> None:
        self._now = time.time()

    def time(self) -> float:
        self._now -= 60.0
        return self._now


@pytest.mark.parametrize("end", ["return 1", "raise ValueError"])
async def test_a_clock_that_is_set_makes_no_duration_wrong(
    serve: Serve, neighbour: Neighbour, tools: Tools, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools("tool", f"import time\ndef tool():\n    time.sleep(0.2)\n    {end}\n")
    await neighbour.publish("exp_1", "tool")
    monkeypatch.setattr(runner, "time", Clock())

    async with serve():
        result = await neighbour.run("exp_1")

    record = await neighbour.record(result["run_id"])
    assert 0.2 <= result["duration"] < 60
    assert float(record["duration_seconds"]) == pytest.approx(result["duration"], abs=1e-5)
    assert record["started_at"] < record["finished_at"]


@pytest.mark.parametrize("end", ["raise ValueError", "import os; os._exit(1)", "import os; os.abort()"])
async def test_what_a_generator_had_yielded_is_kept(
    serve: Serve, neighbour: Neighbour, tools: Tools, end: str
) -> None:
    tools("tool", f"def tool():\n    yield 1\n    yield 2\n    {end}\n")
    await neighbour.publish("exp_1", "tool")

    async with serve():
        result = await neighbour.run("exp_1")
        [partial] = await neighbour.events("exp_1", "partial_completion")

    assert result["partial_results"] == [1, 2]
    assert partial["items_processed"] == 2
