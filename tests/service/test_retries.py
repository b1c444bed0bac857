"""What follows a failed attempt: another one for a transient error, the end for any other."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Neighbour, Serve, Tools
from tests.service.conftest import assert_works

SOON = {"retry_backoff_min": 0.01, "retry_backoff_max": 0.02}

FAILS = """
    import http.client, socket, urllib.error
    from shared import toolkit

    class Busy(Exception):
        retryable = True

    class Limited(Exception):
        retryable = True
        retry_after = 0.7

    class Refused(ConnectionError):
        retryable = False

    class Half(ConnectionError):
        partial_results = ["first"]

    def fails(error: str, times: int):
        if toolkit.run.attempt <= times:
            raise eval(error)
        return {"attempt": toolkit.run.attempt}
"""


@pytest.fixture(autouse=True)
def fails(tools: Tools, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tool `fails`: its first `times` attempts raise `error`.  Retries are looked for very often."""
    monkeypatch.setattr("services.executor.recovery.PROMOTE_SECONDS", 0.02)
    return tools("fails", FAILS)


async def run(neighbour: Neighbour, error: str, times: int, **policy: Any) -> dict[str, Any]:
    """The result of an experiment with that tool."""
    await neighbour.publish("exp_1", "fails", params={"error": error, "times": times}, **policy)
    return await neighbour.run("exp_1")


@pytest.mark.parametrize(
    "error",
    [
        "ConnectionError('reset')",
        "ConnectionResetError('reset')",
        "TimeoutError('slow')",
        "socket.timeout('slow')",
        "OSError(5, 'disk')",
        "urllib.error.URLError('down')",
        "Busy('later')",
    ],
)
async def test_a_transient_error_is_tried_again(serve: Serve, neighbour: Neighbour, error: str) -> None:
    async with serve(**SOON):
        result = await run(neighbour, error, times=1)

    assert result["result_summary"] == {"attempt": 2}


@pytest.mark.parametrize("error", ["ValueError('no')", "KeyError('no')", "Refused('no')", "SystemExit(1)"])
async def test_any_other_error_is_final(serve: Serve, neighbour: Neighbour, error: str) -> None:
    async with serve(**SOON):
        result = await run(neighbour, error, times=1)

    assert (result["status"], "retry_attempts" in result) == ("failed", False)
    assert not [
        one for one in neighbour.heard_of("exp_1", "fullsend:metrics") if one["event"] == "run_retrying"
    ]


async def test_a_crash_is_final(serve: Serve, neighbour: Neighbour, tools: Tools) -> None:
    tools("crash", "import os\n\ndef crash():\n    os._exit(1)\n")
    await neighbour.publish("exp_1", "crash")

    async with serve(**SOON):
        result = await neighbour.run("exp_1")

    assert (result["error_type"], "retry_attempts" in result) == ("ToolCrashedError", False)


async def test_the_record_lists_the_attempts_before_the_last(serve: Serve, neighbour: Neighbour) -> None:
    async with serve(**SOON):
        result = await run(neighbour, "ConnectionError('reset')", times=2)

    record = await neighbour.record(result["run_id"])
    attempts = json.loads(record["attempts"])
    assert (record["attempt"], record["status"]) == ("3", "completed")
    assert [(one["attempt"], one["error"], one["error_type"]) for one in attempts] == [
        (1, "reset", "ConnectionError"),
        (2, "reset", "ConnectionError"),
    ]


async def test_each_retry_is_announced(serve: Serve, neighbour: Neighbour) -> None:
    async with serve(**SOON):
        await run(neighbour, "ConnectionError('reset')", times=2)

    events = neighbour.heard_of("exp_1", "fullsend:metrics")
    assert [(one["event"], one.get("attempt")) for one in events] == [
        ("run_started", 1),
        ("run_retrying", 1),
        ("run_started", 2),
        ("run_retrying", 2),
        ("run_started", 3),
        ("run_completed", None),
    ]
    assert events[1] | {"timestamp": 0, "delay_seconds": 0} == {
        "experiment_id": "exp_1",
        "run_id": events[0]["run_id"],
        "event": "run_retrying",
        "timestamp": 0,
        "attempt": 1,
        "delay_seconds": 0,
        "error": "reset",
        "error_type": "ConnectionError",
    }
    assert 0.01 <= events[1]["delay_seconds"] <= 0.02


async def test_a_run_has_one_result_however_many_attempts(serve: Serve, neighbour: Neighbour) -> None:
    async with serve(**SOON):
        await run(neighbour, "ConnectionError('reset')", times=2)

    assert len(neighbour.heard_of("exp_1", "fullsend:experiment_results")) == 1


async def test_the_last_attempts_failure_is_the_end(serve: Serve, neighbour: Neighbour) -> None:
    async with serve(**SOON, retry_max_attempts=3):
        result = await run(neighbour, "ConnectionError('reset')", times=9)
        [error] = await neighbour.events("exp_1", "error")

    assert (result["error_type"], result["retry_attempts"]) == ("ToolRetryExhaustedError", 3)
    assert "ConnectionError: reset" in result["error"]
    assert (error["error_type"], error["retry_attempts"]) == ("ToolRetryExhaustedError", 3)
    assert (await neighbour.record(result["run_id"]))["status"] == "failed"


async def test_a_single_allowed_attempt_is_the_last_as_well(serve: Serve, neighbour: Neighbour) -> None:
    async with serve(**SOON, retry_max_attempts=1):
        result = await run(neighbour, "ConnectionError('reset')", times=9)

    assert result["error_type"] == "ToolRetryExhaustedError"
    assert result["error"] == "gave up after 1 attempt, the last with ConnectionError: reset"


async def test_the_experiments_policy_is_stronger_than_the_settings(
    serve: Serve, neighbour: Neighbour
) -> None:
    policy = {"max_attempts": 2, "backoff_min": 0, "backoff_max": 0}

    async with serve(retry_backoff_min=600, retry_backoff_max=600):
        result = await run(neighbour, "ConnectionError('reset')", times=9, **policy)

    assert result["retry_attempts"] == 2


async def test_retry_after_is_waited_for(serve: Serve, neighbour: Neighbour) -> None:
    async with serve(**SOON):
        await run(neighbour, "Limited('429')", times=1)

    first, second = await neighbour.events("exp_1", "run_started", 2)
    [retrying] = await neighbour.events("exp_1", "run_retrying")
    assert retrying["delay_seconds"] == 0.7
    assert second["timestamp"] - first["timestamp"] >= 0.7


async def test_partial_results_of_the_last_attempt_are_kept(serve: Serve, neighbour: Neighbour) -> None:
    async with serve(**SOON, retry_max_attempts=2):
        result = await run(neighbour, "Half('reset')", times=9)

    assert (result["error_type"], result["partial_results"]) == ("ToolRetryExhaustedError", ["first"])


async def test_a_waiting_retry_holds_no_slot(serve: Serve, neighbour: Neighbour, tools: Tools) -> None:
    tools("echo", "def echo(**params):\n    return params\n")
    params = {"error": "ConnectionError('reset')", "times": 9}
    await neighbour.publish("exp_1", "fails", params=params)

    async with serve(retry_backoff_min=600, retry_backoff_max=600, concurrency=1):
        await neighbour.trigger({"experiment_id": "exp_1"})
        await neighbour.events("exp_1", "run_retrying")
        await assert_works(neighbour)

    assert not neighbour.heard_of("exp_1", "fullsend:experiment_results")


async def test_a_retry_goes_on_where_another_service_takes_it(serve: Serve, neighbour: Neighbour) -> None:
    params = {"error": "ConnectionError('reset')", "times": 1}
    await neighbour.publish("exp_1", "fails", params=params, backoff_min=0.5, backoff_max=0.5)
    async with serve():
        await neighbour.trigger({"experiment_id": "exp_1"})
        await neighbour.events("exp_1", "run_retrying")

    async with serve():
        result = await neighbour.result("exp_1")

    assert result["result_summary"] == {"attempt": 2}


async def test_a_step_done_once_is_not_repeated_by_a_retry(
    serve: Serve, neighbour: Neighbour, tools: Tools, tmp_path: Path
) -> None:
    tools(
        "pays",
        f"""
        from shared import toolkit

        def pay():
            with open({str(tmp_path / "paid")!r}, "a") as file:
                file.write("paid ")
            return "receipt"

        def pays():
            receipt = toolkit.once("pay", pay)
            if toolkit.run.attempt == 1:
                raise ConnectionError("after paying")
            return receipt
        """,
    )
    await neighbour.publish("exp_1", "pays")

    async with serve(**SOON):
        result = await neighbour.run("exp_1")

    assert result["result_summary"] == {"value": "receipt"}
    assert (tmp_path / "paid").read_text() == "paid "


# -- partial results --------------------------------------------------------------------

REPORTS = """
    import os
    from shared import toolkit

    def reports(ends: str, secret: str):
        attempt = toolkit.run.attempt
        toolkit.partial({"of": "all"})
        toolkit.partial({"of": attempt, "secret": secret})
        if attempt == 1:
            raise ConnectionError("reset")
        if ends == "crash":
            os._exit(3)
        if ends == "raise":
            error = ValueError("half")
            error.partial_results = {"half": attempt}
            raise error
        return "done"

"""
YIELDS = """
    from shared import toolkit

    def yields(last: int):
        for number in range(3 if toolkit.run.attempt == 1 else last):
            yield number
        raise ConnectionError("reset")
"""


async def test_partial_items_are_kept_over_attempts_however_the_run_ends(
    serve: Serve, neighbour: Neighbour, tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "hunter22")
    tools("reports", REPORTS)
    items = [{"of": 1, "secret": "***"}, {"of": "all"}, {"of": 2, "secret": "***"}]

    async with serve(**SOON, tool_environment=("TOKEN",)):
        records = {}
        for ends in ("return", "raise", "crash"):
            params = {"ends": ends, "secret": "hunter22"}
            await neighbour.publish(ends, "reports", params=params)
            records[ends] = await neighbour.record((await neighbour.run(ends))["run_id"])
        left = await neighbour.redis.keys("fullsend:executor:partials:*")

    assert [records[ends]["status"] for ends in records] == ["completed", "failed", "failed"]
    kept = {ends: json.loads(record["partial_results"]) for ends, record in records.items()}
    assert kept == {"return": items, "raise": [*items, {"half": 2}], "crash": items}
    assert records["return"]["result"] == '"done"'
    assert left == []


@pytest.mark.parametrize(("last", "kept"), [(0, [0, 1, 2]), (2, [2, 0, 1]), (5, [0, 1, 2, 3, 4])])
async def test_yielded_items_of_earlier_attempts_are_kept(
    serve: Serve, neighbour: Neighbour, tools: Tools, last: int, kept: list[int]
) -> None:
    tools("yields", YIELDS)
    await neighbour.publish("exp_1", "yields", params={"last": last})

    async with serve(**SOON, retry_max_attempts=2):
        result = await neighbour.run("exp_1")

    assert result["partial_results"] == kept
