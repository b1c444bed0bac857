"""Task results become test results: eight statuses become four, and nothing else is lost."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from services.executor.artifacts import CasReference, LocalBlobs
from services.executor.outcome import Status
from services.planner.execution import ExecutionResult
from services.planner.models import TestCase
from services.planner.results import (
    LOADED_MAX_BYTES,
    TASK_STATUS_OF_TEST,
    TEST_STATUS_OF_TASK,
    ResultConverter,
    statistics_of,
)
from services.planner.tasks import Spent, TaskResult, TaskStatus, TestResult, TestStatus

NOW = datetime(2030, 1, 1, tzinfo=UTC)
CASE = TestCase(dataset="ring", scenario="shock", parameters={"kappa": 0.5}, metadata={"owner": "me"})


def task_result(status: TaskStatus = TaskStatus.SUCCEEDED, **members: Any) -> TaskResult:
    """A task result."""
    return TaskResult("task", "workflow", 0, CASE, status, NOW, **members)


def execution(text: str | None, base: str = "memory://") -> ExecutionResult:
    """What a backend says of a tool that returned this."""
    return ExecutionResult(
        "run", Status.COMPLETED, "local" if base[0] == "/" else "memory", base, result=text
    )


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (TaskStatus.SUCCEEDED, TestStatus.SUCCESS),
        (TaskStatus.FAILED, TestStatus.FAILED),
        (TaskStatus.TIMEOUT, TestStatus.TIMEOUT),
        (TaskStatus.ERROR, TestStatus.ERROR),
        (TaskStatus.CANCELLED, TestStatus.ERROR),
        (TaskStatus.PENDING, TestStatus.ERROR),
        (TaskStatus.QUEUED, TestStatus.ERROR),
        (TaskStatus.RUNNING, TestStatus.ERROR),
    ],
)
def test_eight_statuses_become_four_and_the_original_is_kept(
    status: TaskStatus, expected: TestStatus
) -> None:
    converted = ResultConverter.convert(task_result(status))

    assert converted.status is expected
    assert converted.metadata["task_status"] == status.value


def test_the_tables_have_every_status() -> None:
    assert set(TEST_STATUS_OF_TASK) == set(TaskStatus)
    assert {TEST_STATUS_OF_TASK[task]: test for test, task in TASK_STATUS_OF_TEST.items()} == {
        one: one for one in TestStatus
    }


def test_every_field_is_found() -> None:
    given = task_result(
        TaskStatus.FAILED,
        execution_time=2.5,
        attempt_count=3,
        error_type="ValueError",
        error_message="no",
    )

    assert ResultConverter.convert(given, {"plan": "p", "owner": "nobody"}) == TestResult(
        workflow_id="workflow",
        execution_id="task",
        timestamp=NOW,
        status=TestStatus.FAILED,
        execution_time=2.5,
        tokens_used=0,
        cost=0.0,
        inputs={"kappa": 0.5},
        outputs={},
        error_message="no",
        error_type="ValueError",
        dataset="ring",
        metadata={
            "plan": "p",
            "owner": "me",
            "dataset": "ring",
            "scenario": "shock",
            "attempt_count": 3,
            "task_status": "failed",
        },
    )


@pytest.mark.parametrize(
    ("returned", "outputs"),
    [
        ({"a": 1}, {"a": 1}),
        ([1, 2], {"result": [1, 2]}),
        (7, {"result": 7}),
        ("cas://", {"result": "cas://"}),
    ],
)
def test_a_tools_result_is_the_outputs(returned: Any, outputs: Any) -> None:
    given = task_result(execution=execution(json.dumps(returned)))

    assert ResultConverter.convert(given).outputs == outputs


def test_a_tool_that_returns_nothing_says_so() -> None:
    assert ResultConverter.convert(task_result(execution=execution(None))).outputs == {"result": None}


@pytest.mark.parametrize(
    ("members", "tokens_used", "cost"),
    [
        ({"tokens_used": 12, "cost": 0.5}, 12, 0.5),
        ({"tokens_used": 12.0, "cost": 1}, 12, 1.0),
        ({"tokens_used": "many", "cost": None}, 0, 0.0),
        ({"tokens_used": True, "cost": -1}, 0, 0.0),
        ({"tokens_used": 10**400, "cost": 10**400}, 0, 0.0),
    ],
)
def test_the_use_that_a_tool_reports_is_found(members: Any, tokens_used: int, cost: float) -> None:
    converted = ResultConverter.convert(task_result(execution=execution(json.dumps(members))))

    assert (converted.tokens_used, converted.cost) == (tokens_used, cost)


def test_a_stored_result_is_loaded(tmp_path: Path) -> None:
    returned = {"tokens_used": 5, "text": "x" * 10_000}
    reference = _stored(tmp_path, json.dumps(returned))

    converted = ResultConverter.convert(task_result(execution=execution(reference, str(tmp_path))))

    assert (converted.outputs, converted.tokens_used) == (returned, 5)


def test_the_reference_of_a_very_large_result_is_passed_on_with_its_cost(tmp_path: Path) -> None:
    returned = {"tokens_used": 5, "cost": 0.5, "text": "x" * LOADED_MAX_BYTES}
    reference = _stored(tmp_path, json.dumps(returned))

    converted = ResultConverter.convert(task_result(execution=execution(reference, str(tmp_path))))

    assert converted.outputs == {"result": reference}
    assert (converted.tokens_used, converted.cost) == (5, 0.5)


def test_the_cost_of_a_result_is_not_read_twice(tmp_path: Path) -> None:
    gone = execution(str(CasReference("0" * 64)), str(tmp_path))

    converted = ResultConverter.convert(task_result(execution=gone, spent=Spent(5, 0.5)))

    assert (converted.tokens_used, converted.cost) == (5, 0.5)


def test_the_reference_of_a_missing_result_is_passed_on(tmp_path: Path) -> None:
    reference = str(CasReference("0" * 64))

    converted = ResultConverter.convert(task_result(execution=execution(reference, str(tmp_path))))

    assert converted.outputs == {"result": reference}


def _stored(base: Path, text: str) -> str:
    return str(CasReference(LocalBlobs(base).put(text.encode()).sha256))


def test_a_batch_keeps_its_order() -> None:
    given = [task_result(attempt_count=number) for number in range(3)]

    converted = ResultConverter.convert_batch(given, {"plan": "p"})

    assert [one.metadata["attempt_count"] for one in converted] == [0, 1, 2]
    assert {one.metadata["plan"] for one in converted} == {"p"}


def test_none_as_a_result_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^task_result cannot be None$"):
        ResultConverter.convert(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^task_results cannot be None$"):
        ResultConverter.convert_batch(None)  # type: ignore[arg-type]


def test_statistics_without_results_are_zero() -> None:
    assert statistics_of((), 0.0).total == 0
