"""The result of a case as a text of the registry, and back."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.executor.outcome import Status
from services.planner.execution import ErrorInfo, ExecutionResult
from services.planner.models import TestCase
from services.planner.tasks import (
    Spent,
    TaskResult,
    TaskStatus,
    TestResult,
    TestStatus,
    result_from_text,
    result_to_text,
)
from shared.errors import ContractError

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
RESULT = TaskResult(
    "t0", "w", 0, TestCase(parameters={"n": 0}), TaskStatus.SUCCEEDED, NOON, NOON, NOON, 0.5, 1
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.text(), json_values, max_size=3)
moments = st.datetimes(timezones=st.just(UTC))
cases = st.builds(
    TestCase, dataset=st.text(), scenario=st.text(), parameters=objects, metadata=objects,
    seed=st.none() | st.integers(0, 2**63 - 1), replicate=st.integers(0, 9),
)  # fmt: skip
executions = st.builds(
    ExecutionResult, run_id=st.text(), status=st.sampled_from(Status), storage_type=st.just("local"),
    storage_base=st.sampled_from(["/plan/artifacts", "/elsewhere"]), result=st.none() | st.text(),
    artifacts=st.dictionaries(st.text(), st.text(), max_size=2), parameters=objects,
    error=st.none() | st.builds(ErrorInfo, st.text(), st.text(), st.text(), st.booleans()),
    seed=st.none() | st.integers(0, 9), execution_time_ms=st.none() | st.integers(0, 9),
)  # fmt: skip
test_results = st.builds(
    TestResult, workflow_id=st.text(), execution_id=st.text(), timestamp=moments,
    status=st.sampled_from(TestStatus), execution_time=st.floats(0, 9), inputs=objects, outputs=objects,
)  # fmt: skip
task_results = st.builds(
    TaskResult, task_id=st.text(), workflow_id=st.text(), index=st.integers(0, 99), case=cases,
    task_status=st.sampled_from(TaskStatus), created_at=moments, started_at=st.none() | moments,
    finished_at=st.none() | moments, execution_time=st.floats(0, 9), attempt_count=st.integers(0, 9),
    error_type=st.none() | st.text(), error_message=st.none() | st.text(),
    execution=st.none() | executions, test_result=st.none() | test_results,
    spent=st.none() | st.builds(Spent, st.integers(0, 9), st.floats(0, 9)),
)  # fmt: skip


@given(task_results)
def test_a_result_is_the_same_after_it_was_written(one: TaskResult) -> None:
    assert result_from_text(result_to_text(one, "/plan/artifacts"), "/plan/artifacts") == one


@given(executions)
def test_an_execution_is_the_same_after_it_was_written(one: ExecutionResult) -> None:
    assert ExecutionResult.from_json(one.to_json()) == one


def test_a_result_moves_with_the_plans_artifacts_and_no_others() -> None:
    execution = ExecutionResult("r", Status.COMPLETED, "local", "/plan/artifacts")
    inside = replace(RESULT, execution=execution)
    outside = replace(RESULT, execution=execution.moved_to("/fleet"))

    moved = [
        result_from_text(result_to_text(one, "/plan/artifacts"), "/new/artifacts")
        for one in (inside, outside)
    ]

    assert [one.execution and one.execution.storage_base for one in moved] == ["/new/artifacts", "/fleet"]


def test_values_of_functions_that_json_cant_hold_become_texts() -> None:
    odd = TestResult("w", "e", NOON, TestStatus.SUCCESS, 1.0, outputs={"n": 1, "odd": {3}})

    read = result_from_text(result_to_text(replace(RESULT, test_result=odd), ""), "")

    assert read.test_result is not None
    assert read.test_result.outputs == {"n": 1, "odd": "{3}"}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"index": 3, "execution": {"run_id": "r"}}'])
def test_a_row_that_cant_be_read_says_so(text: str) -> None:
    with pytest.raises(ContractError, match="can't be read"):
        result_from_text(text, "")
