"""Custom functions instead of a backend: values are results, exceptions are failures."""

import asyncio
import functools
import threading
from datetime import UTC, datetime
from typing import Any

import pytest

from services.planner.results import ResultConverter
from services.planner.scheduler import TaskScheduler
from services.planner.tasks import Task, TestResult, TestStatus
from tests.planner.scripted import plan, states

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def returning(status: TestStatus, **members: Any) -> TestResult:
    """What a function may return."""
    return TestResult("w", "e", NOW, status, 1.5, **members)


def as_plain(task: Task) -> Any:
    return {"doubled": task.parameters["n"] * 2, "tokens_used": 12, "cost": 0.25}


async def as_coroutine(task: Task) -> Any:
    return as_plain(task)


class AsObject:
    """Is called like a function."""

    async def __call__(self, task: Task) -> Any:
        """The same again."""
        return as_plain(task)


KINDS = [
    as_plain,
    as_coroutine,
    AsObject(),
    functools.partial(as_coroutine),
    lambda task: as_coroutine(task),
]


@pytest.mark.parametrize("function", KINDS)
async def test_functions_of_every_kind_are_called(function: Any) -> None:
    found = await TaskScheduler(task_execution_func=function).run_manifest_async(plan(3, concurrency=2))

    assert states(found) == ["succeeded"] * 3
    (_, _, third) = ResultConverter.convert_batch(found.task_results)
    assert third.outputs["doubled"] == 4
    assert (third.tokens_used, third.cost, third.inputs) == (12, 0.25, {"n": 2})


async def test_functions_run_at_once_as_the_concurrency_says() -> None:
    together = threading.Barrier(20, timeout=30)

    found = await TaskScheduler(task_execution_func=lambda task: together.wait()).run_manifest_async(
        plan(20, concurrency=20)
    )

    assert states(found) == ["succeeded"] * 20


@pytest.mark.parametrize(
    ("status", "state"),
    [
        (TestStatus.SUCCESS, "succeeded"),
        (TestStatus.FAILED, "failed"),
        (TestStatus.TIMEOUT, "timeout"),
        (TestStatus.ERROR, "error"),
    ],
)
async def test_a_test_result_arrives_unchanged(status: TestStatus, state: str) -> None:
    returned = returning(
        status,
        tokens_used=77,
        cost=0.5,
        inputs={"prompt": "hello"},
        outputs={"answer": ["hi"]},
        error_message="as it says",
        metadata={"model": "small"},
    )

    scheduler = TaskScheduler(task_execution_func=lambda task: returned)
    found = await scheduler.run_manifest_async(plan(1, retry_policy={"max_attempts": 3}))

    assert states(found) == [state]
    assert found.task_results[0].test_result is returned
    converted = ResultConverter.convert(found.task_results[0])
    for name in ("status", "tokens_used", "cost", "inputs", "outputs", "error_message"):
        assert getattr(converted, name) == getattr(returned, name)
    assert converted.metadata["model"] == "small"
    assert converted.metadata["attempt_count"] == 1


class Odd(BaseException):
    """What `except Exception` doesn't catch."""


class Unprintable(Exception):
    """Fails even at being shown."""

    def __str__(self) -> str:
        """Fail."""
        raise ValueError


RAISED = [
    ValueError("no"),
    Odd("no"),
    SystemExit(3),
    KeyboardInterrupt(),
    GeneratorExit(),
    StopIteration(),
    asyncio.CancelledError(),
    Unprintable(),
]


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
async def test_any_exception_of_a_function_is_one_failure(error: BaseException) -> None:
    def second_raises(task: Task) -> int:
        if task.index == 1:
            raise error
        return task.index

    found = await TaskScheduler(task_execution_func=second_raises).run_manifest_async(plan(3, concurrency=3))

    assert states(found) == ["succeeded", "failed", "succeeded"]
    assert found.task_results[1].error_type == type(error).__name__
    assert found.task_results[1].error_message is not None


class Wanted(Exception):
    """Says itself that another attempt makes sense."""

    retryable = True


class Unwanted(ConnectionError):
    """Says itself that none does."""

    retryable = False


@pytest.mark.parametrize(
    ("error", "attempts"),
    [(ValueError, 1), (ConnectionError, 2), (TimeoutError, 2), (Wanted, 2), (Unwanted, 1)],
)
async def test_functions_are_retried_by_the_rule_of_tools(error: type[Exception], attempts: int) -> None:
    def raising(task: Task) -> None:
        raise error("no")

    manifest = plan(1, retry_policy={"max_attempts": 2, "backoff_seconds": 0})
    found = await TaskScheduler(task_execution_func=raising).run_manifest_async(manifest)

    assert found.task_results[0].attempt_count == attempts
    assert states(found) == ["failed"]


async def test_a_test_result_of_an_unknown_status_is_a_failure() -> None:
    returned = returning("splendid")  # type: ignore[arg-type]

    found = await TaskScheduler(task_execution_func=lambda task: returned).run_manifest_async(plan(1))

    assert states(found) == ["failed"]
    assert "expected one of success, failed, timeout, error" in str(found.task_results[0].error_message)
