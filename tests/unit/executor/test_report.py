"""What is written and said about a run, member for member as the contract has it."""

import json
from typing import Any

import pytest

from services.executor import report
from services.executor.isolation.calls import Died, Exit, Raised, Returned, TimedOut
from services.executor.outcome import Outcome, Status, judge
from services.executor.result_cache import Identity
from services.executor.store import Order
from shared.errors import ContractError, ToolNotFoundError

ORDER = Order("exp:1", "cron", timestamp="1700000000123-4", scheduled_for="2023-11-14T22:13:00.000+00:00")
RUN_ID = "exp:1:1700000000123-4"
STARTED, ENDED = 1_700_000_001.0, 1_700_000_003.5
COMPLETED = judge(Returned({"sent": [1, 2], "rate": 0.5}), [])
FAILED = judge(Raised("KeyError", "'a'", "Traceback ..."), [])
TIMED_OUT = judge(TimedOut(2.5, Exit(signal="SIGTERM")), [{"sent": 1}])


def event_of(**members: Any) -> dict[str, Any]:
    return {"experiment_id": "exp:1", "run_id": RUN_ID} | members


def without_time(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    assert all(isinstance(event["timestamp"], float) for event in events)
    return [{name: one for name, one in event.items() if name != "timestamp"} for event in events]


def end_events(outcome: Outcome, order: Order = ORDER) -> list[dict[str, Any]]:
    return without_time(report.end_events(order, outcome, STARTED, ENDED))


def result(outcome: Outcome, order: Order = ORDER) -> dict[str, Any]:
    return report.result(order, outcome, STARTED, ENDED)


# -- the record -----------------------------------------------------------------------


def test_a_record_says_where_the_run_comes_from() -> None:
    order = Order("e", "trigger", timestamp="1700000000123-4", request_id="r", triggered_by="me", attempt=2)

    assert report.identity_fields(order) == {
        "run_id": "e:1700000000123-4",
        "experiment_id": "e",
        "trigger": "trigger",
        "triggered_by": "me",
        "request_id": "r",
        "scheduled_for": None,
        "queued_at": "2023-11-14T22:13:20.123+00:00",
    }


def test_a_record_says_what_the_run_depends_on() -> None:
    identity = Identity("d1", "run", {"a": 1}, seed=3)
    fields = report.details(ORDER, identity, {"a": 1})

    assert fields == report.identity_fields(ORDER) | {
        "tool_digest": "d1",
        "run_digest": identity.digest,
        "entry_point": "run",
        "seed": 3,
        "environment_digest": None,
        "params": {"a": 1},
    }


def test_a_record_says_how_it_ended_well() -> None:
    assert report.end_fields(ORDER, COMPLETED, STARTED, ENDED) == {
        "attempt": "1",
        "status": "completed",
        "finished_at": "2023-11-14T22:13:23.500+00:00",
        "timestamp": "2023-11-14T22:13:23.500+00:00",
        "duration_seconds": "2.500000",
        "result_summary": {"sent_count": 2, "rate": 0.5},
        "result": '{"sent":[1,2],"rate":0.5}',
        **dict.fromkeys(("error", "error_type", "traceback", "partial_results", "exit", "attempts")),
        **dict.fromkeys(("artifacts", "cached", "cached_from", "retryable", "retry_after_seconds")),
    }


def test_a_record_says_how_it_ended_badly() -> None:
    history = {"attempt": 1, "error": "refused", "error_type": "ConnectionError", "at": "..."}
    fields = report.end_fields(ORDER.after_failure(history), TIMED_OUT, STARTED, ENDED)

    assert fields["status"] == "timeout"
    assert fields["error_type"] == "ToolTimeoutError"
    assert fields["partial_results"] == '[{"sent":1}]'
    assert fields["exit"] == {"signal": "SIGTERM"}
    assert fields["attempts"] == [history]
    assert fields["result"] is fields["result_summary"] is None


@pytest.mark.parametrize("value", [None, False, 0, "", [], {}])
def test_a_result_that_says_little_is_still_a_result(value: Any) -> None:
    fields = report.end_fields(ORDER, judge(Returned(value), []), STARTED, ENDED)

    assert json.loads(fields["result"]) == value


def test_texts_of_a_record_can_be_written_whatever_the_tool_returned() -> None:
    half = "half a pair: \ud83d"
    returned = report.end_fields(ORDER, judge(Returned([half]), []), STARTED, ENDED)
    raised = report.end_fields(ORDER, judge(Raised("E", ""), [half]), STARTED, ENDED)

    assert json.loads(returned["result"].encode()) == [half]
    assert json.loads(raised["partial_results"].encode()) == [half]


def test_an_attempt_is_listed_with_what_it_came_to() -> None:
    assert report.failure(ORDER, FAILED, ENDED) == {
        "attempt": 1,
        "error": "'a'",
        "error_type": "KeyError",
        "at": "2023-11-14T22:13:23.500+00:00",
    }


# -- metric events --------------------------------------------------------------------


def test_a_retry_is_an_event() -> None:
    event = report.retrying_event(ORDER, FAILED, 1.23456)

    assert without_time([event]) == [
        event_of(event="run_retrying", attempt=1, delay_seconds=1.235, error="'a'", error_type="KeyError")
    ]


def test_a_success_is_one_event() -> None:
    assert end_events(COMPLETED) == [event_of(event="run_completed", duration=2.5)]


def test_the_items_of_a_result_are_an_event_before_it() -> None:
    assert end_events(judge(Returned([], items=0), [])) == [
        event_of(event="items_processed", count=0),
        event_of(event="run_completed", duration=2.5),
    ]


def test_a_failure_is_an_error_event() -> None:
    assert end_events(FAILED) == [event_of(event="error", message="'a'", error_type="KeyError")]


def test_a_time_out_is_an_error_event_with_its_limit_and_what_was_kept() -> None:
    assert end_events(TIMED_OUT) == [
        event_of(event="partial_completion", items_processed=1),
        event_of(
            event="error",
            message="the tool was still running after 2.5 s and was ended",
            error_type="ToolTimeoutError",
            timeout_seconds=2.5,
        ),
    ]


def test_a_failure_after_retries_says_how_many_attempts_there_were() -> None:
    order = ORDER.after_failure({}).after_failure({})
    [event] = end_events(FAILED.exhausted(3), order)

    assert event["retry_attempts"] == result(FAILED.exhausted(3), order)["retry_attempts"] == 3
    assert event["error_type"] == "ToolRetryExhaustedError"


# -- the message ----------------------------------------------------------------------


def test_a_success_is_told() -> None:
    assert result(COMPLETED) == {
        "type": "experiment_completed",
        "experiment_id": "exp:1",
        "run_id": RUN_ID,
        "status": "success",
        "duration": 2.5,
        "result_summary": {"sent_count": 2, "rate": 0.5},
        "trigger": "cron",
    }


def test_a_failure_is_told() -> None:
    assert result(FAILED) == {
        "type": "experiment_failed",
        "experiment_id": "exp:1",
        "run_id": RUN_ID,
        "status": "failed",
        "duration": 2.5,
        "error": "'a'",
        "error_type": "KeyError",
        "trigger": "cron",
    }


def test_a_time_out_is_told_with_its_limit_and_what_was_kept() -> None:
    message = result(TIMED_OUT)

    assert message["timeout_seconds"] == 2.5
    assert message["partial_results"] == [{"sent": 1}]
    assert message["error_type"] == "ToolTimeoutError"


@pytest.mark.parametrize("outcome", [COMPLETED, FAILED, judge(Died("x", Exit()), [])])
def test_a_request_is_answered_with_its_id(outcome: Outcome) -> None:
    assert result(outcome, Order("e", "trigger", timestamp="1-1", request_id="r"))["request_id"] == "r"
    assert "request_id" not in result(outcome)


def test_a_missing_tool_is_not_found_under_the_name_that_was_given() -> None:
    message = result(Outcome.of_error(ToolNotFoundError("a_tool", "there is no tools/a_tool.py")))

    assert message["error_type"] == "ToolNotFoundError"
    assert "Tool 'a_tool' not found" in message["error"]


def test_a_message_that_can_not_become_a_run_is_refused() -> None:
    refusal = report.refusal(ContractError("trigger is a list; expected a JSON object"), None)

    assert refusal == {
        "type": "experiment_failed",
        "experiment_id": None,
        "run_id": None,
        "status": "failed",
        "error": "trigger is a list; expected a JSON object",
        "error_type": "ContractError",
    }


def test_a_refused_request_is_told_its_id() -> None:
    assert report.refusal(ContractError("x"), "e", "r")["request_id"] == "r"


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.RUNNING])
def test_every_message_and_event_is_json(status: Status) -> None:
    outcome = Outcome(
        status, result=[1], error="x", error_type="E", partial_results=[1], exit={"signal": "X"}
    )

    assert json.dumps([result(outcome), end_events(outcome)], allow_nan=False)
