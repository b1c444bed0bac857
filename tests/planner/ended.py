"""Results of cases, made by hand."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from services.executor.outcome import Status
from services.planner.execution import ErrorInfo, ExecutionResult
from services.planner.models import TestCase
from services.planner.tasks import TASK_STATUS_OF_RUN, TaskResult, TaskStatus

BEGIN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
STATUS = {after: before for before, after in TASK_STATUS_OF_RUN.items()}


def ended(
    index: int,
    result: Any = None,
    status: TaskStatus = TaskStatus.SUCCEEDED,
    *,
    case: TestCase | None = None,
    error: ErrorInfo | None = None,
    seconds: float = 1.0,
    attempts: int = 1,
    digest: str = "d" * 64,
    **members: Any,
) -> TaskResult:
    """The result of a case that began `index` seconds after the first."""
    case = case or TestCase(parameters={"x": index}, seed=index)
    begin = BEGIN + timedelta(seconds=index)
    execution = ExecutionResult(
        run_id=f"run-{index}",
        status=STATUS.get(status, Status.FAILED),
        storage_type="memory",
        storage_base="memory://",
        error=error,
        result=json.dumps(result) if not isinstance(result, Stored) else result.reference,
        parameters=case.parameters,
        seed=case.seed,
        tool_digest=digest,
        **members,
    )
    return TaskResult(
        task_id=f"task-{index}",
        workflow_id="plan",
        index=index,
        case=case,
        task_status=status,
        created_at=BEGIN,
        started_at=begin,
        finished_at=begin + timedelta(seconds=seconds),
        execution_time=seconds,
        attempt_count=attempts,
        error_type=error.type if error else None,
        error_message=error.message if error else None,
        execution=execution,
    )


def failed(index: int, kind: str = "ValueError", message: str = "no", **options: Any) -> TaskResult:
    """The result of a case that failed."""
    return ended(index, None, TaskStatus.FAILED, error=ErrorInfo(kind, message), **options)


def never_ran(
    index: int, status: TaskStatus = TaskStatus.CANCELLED, case: TestCase | None = None
) -> TaskResult:
    """The result of a case that never began."""
    case = case or TestCase(parameters={"x": index}, seed=index)
    return TaskResult(f"task-{index}", "plan", index, case, status, BEGIN)


class Stored:
    """A result that is stored: only its reference."""

    def __init__(self, reference: str) -> None:
        self.reference = reference
