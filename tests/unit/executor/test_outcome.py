"""What a child's answer means for the run, in the words of the contract."""

from typing import Any

import pytest

from services.executor.isolation.calls import Answer, Cancelled, Died, Exit, Raised, Returned, TimedOut, Used
from services.executor.outcome import Outcome, Status, judge, summary
from shared.errors import ToolNotFoundError

EXIT = Exit(exit_code=-9, signal="SIGKILL", peak_rss_bytes=1_000, cpu_seconds=0.5, last_lines=("a", "b"))
SHOWN = {
    "exit_code": -9,
    "signal": "SIGKILL",
    "peak_rss_bytes": 1_000,
    "cpu_seconds": 0.5,
    "last_lines": ("a", "b"),
}


# -- the judge ------------------------------------------------------------------------


def test_a_tool_that_returned_has_succeeded() -> None:
    outcome = judge(Returned({"sent": 3}), [])

    assert outcome == Outcome(Status.COMPLETED, result={"sent": 3})


def test_the_items_of_a_result_are_counted() -> None:
    assert judge(Returned([1, 2], items=2), [1, 2]).items == 2


def test_a_tool_that_raised_has_failed() -> None:
    outcome = judge(Raised("KeyError", "'a'", "Traceback ...", retryable=True, retry_after_seconds=3.0), [])

    assert outcome == Outcome(
        Status.FAILED,
        error="'a'",
        error_type="KeyError",
        traceback="Traceback ...",
        retryable=True,
        retry_after_seconds=3.0,
    )


def test_partial_results_that_were_too_many_are_counted_in_the_error() -> None:
    outcome = judge(Raised("KeyError", "'a'"), [1, 2], dropped=1_500)

    assert outcome.partial_results == [1, 2]
    assert outcome.error == "'a' (the first 2 partial results are kept, 1,500 more are not)"


def test_partial_results_of_the_exception_itself_count_alone() -> None:
    outcome = judge(Raised("KeyError", "'a'", partial_results=[3]), [1, 2], dropped=1_500)

    assert (outcome.partial_results, outcome.error) == ([3], "'a'")


def test_a_tool_that_was_ended_for_its_time_has_timed_out() -> None:
    outcome = judge(TimedOut(2.5, EXIT), [])

    assert outcome == Outcome(
        Status.TIMEOUT,
        error="the tool was still running after 2.5 s and was ended",
        error_type="ToolTimeoutError",
        timeout_seconds=2.5,
        exit=SHOWN,
        used=Used(None, EXIT.peak_rss_bytes or 0),
    )


def test_what_was_measured_of_a_process_tree_counts_more_than_what_a_process_says() -> None:
    answers: list[Answer] = [
        Returned(1, used=Used(0.5, 10)),
        Raised("E", "", used=Used(0.5, 10), peak_rss_bytes=30),
    ]

    assert [judge(answer, []).used for answer in answers] == [Used(0.5, 10), Used(0.5, 30)]
    assert judge(Returned(1), []).used is None


def test_a_tool_whose_process_died_has_failed() -> None:
    outcome = judge(Died("killed by SIGKILL", EXIT), [])

    assert (outcome.status, outcome.error_type) == (Status.FAILED, "ToolCrashedError")
    assert (outcome.error, outcome.exit) == ("killed by SIGKILL", SHOWN)


def test_a_cancelled_run_is_cancelled() -> None:
    outcome = judge(Cancelled(EXIT), [])

    assert (outcome.status, outcome.error_type) == (Status.CANCELLED, "RunCancelledError")


def test_an_error_is_retryable_only_if_the_tool_says_so() -> None:
    ended: list[Answer] = [TimedOut(1, EXIT), Died("", EXIT), Cancelled(EXIT), Returned(1), Raised("E", "")]

    assert not any(judge(answer, []).retryable for answer in ended)


@pytest.mark.parametrize("answer", [Raised("E", ""), TimedOut(1, EXIT), Died("", EXIT), Cancelled(EXIT)])
def test_partial_results_are_kept(answer: Answer) -> None:
    kept = judge(answer, [1, 2, 3])

    assert (kept.partial_results, kept.partial_count) == ([1, 2, 3], 3)
    assert judge(answer, []).partial_results is None
    assert judge(answer, []).partial_count is None


def test_partial_results_of_the_exception_are_stronger() -> None:
    outcome = judge(Raised("E", "", partial_results={"sent": [1], "failed": []}), [1, 2, 3])

    assert (outcome.partial_results, outcome.partial_count) == ({"sent": [1], "failed": []}, 2)


@pytest.mark.parametrize(("partial", "count"), [("text", 1), (5, 1), (False, 1), ([], 0), ({}, 0)])
def test_partial_results_may_be_anything(partial: Any, count: int) -> None:
    outcome = judge(Raised("E", "", partial_results=partial), [])

    assert (outcome.partial_results, outcome.partial_count) == (partial, count)


def test_a_success_has_no_partial_results() -> None:
    assert judge(Returned([1], items=1), [1]).partial_count is None


def test_an_exit_shows_all_known_members_even_zero() -> None:
    outcome = judge(Died("it left", Exit(exit_code=0, cpu_seconds=0.0, peak_rss_bytes=0)), [])

    assert outcome.exit == {"exit_code": 0, "cpu_seconds": 0.0, "peak_rss_bytes": 0}


def test_an_exit_shows_that_memory_ran_out() -> None:
    assert judge(Died("", Exit(oom_killed=True, stacks="File ...")), []).exit == {
        "oom_killed": True,
        "stacks": "File ...",
    }


# -- outcomes -------------------------------------------------------------------------


def test_a_failure_before_the_call_has_the_errors_words() -> None:
    outcome = Outcome.of_error(ToolNotFoundError("x"))

    assert outcome == Outcome(Status.FAILED, error="Tool 'x' not found", error_type="ToolNotFoundError")


def test_a_failure_after_the_last_attempt_says_so_and_keeps_the_rest() -> None:
    failed = judge(Raised("ConnectionError", "refused", "Traceback", retryable=True), [1])
    outcome = failed.exhausted(3)

    assert outcome.error_type == "ToolRetryExhaustedError"
    assert outcome.error == "gave up after 3 attempts, the last with ConnectionError: refused"
    assert (outcome.traceback, outcome.partial_results) == ("Traceback", [1])


def test_the_statuses_are_those_of_the_contract() -> None:
    assert {status.value for status in Status} == {
        "running",
        "completed",
        "failed",
        "timeout",
        "cancelled",
        "lost",
    }


# -- summaries ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "short"),
    [
        (None, {}),
        ({}, {}),
        ([], {"count": 0}),
        ([1, [2]], {"count": 2}),
        (5, {"value": 5}),
        (False, {"value": False}),
        ("text", {"value": "text"}),
        ({"a": 1, "b": "x", "c": None, "d": True}, {"a": 1, "b": "x", "d": True}),
        ({"sent": [1, 2], "by": {"x": 1}}, {"sent_count": 2, "by_count": 1}),
        ({"sent": [1, 2], "sent_count": 7}, {"sent_count": 7}),
    ],
)
def test_a_result_is_summed_up(result: Any, short: dict[str, Any]) -> None:
    assert summary(result) == short


def test_a_summary_is_short() -> None:
    texts = {f"text_{number}": "x" * 10_000 for number in range(1_000)}
    short = summary(texts)

    assert len(short) == 50
    assert all(len(text) == 200 and text.endswith("...") for text in short.values())
    assert len(summary("x" * 10_000)["value"]) == 200
    assert summary("x" * 200) == {"value": "x" * 200}
