"""What a case came to, as JSON and back."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from datetime import datetime
from typing import Any, Final

from services.planner.execution import ExecutionResult
from services.planner.models import TestCase
from services.planner.tasks import Spent, TaskResult, TaskStatus, TestResult, TestStatus
from shared.documents import kind
from shared.errors import ContractError

HERE: Final = "."
"""Stands for the plan's own artifacts, so that a plan's directory can be moved."""

_MOMENTS: Final = ("created_at", "started_at", "finished_at")


def to_text(result: TaskResult, artifacts: str) -> str:
    """A result as JSON; what a custom function returned and JSON can't hold is kept as its `repr`.

    Args:
        result: of a case.
        artifacts: where the plan's own artifacts are now.
    """
    return json.dumps(to_json(result, artifacts), ensure_ascii=False, separators=(",", ":"), default=repr)


def from_text(text: str, artifacts: str) -> TaskResult:
    """The result that `to_text` made the text of.  Raises `ContractError`."""
    try:
        members = json.loads(text)
    except ValueError as exc:
        raise ContractError(f"a result can't be read: {exc}; it starts with {text!r:.80}") from None
    if not isinstance(members, dict):
        raise ContractError(f"a result can't be read: it is {kind(members)}")
    return from_json(members, artifacts)


def to_json(result: TaskResult, artifacts: str) -> dict[str, Any]:
    """A result as plain values, where the backend says so of what it holds."""
    members: dict[str, Any] = {one.name: getattr(result, one.name) for one in fields(TaskResult)}
    execution, test_result = result.execution, result.test_result
    if execution is not None and execution.storage_base == artifacts:
        execution = execution.moved_to(HERE)
    return {
        **members,
        **{name: _moment_text(members[name]) for name in _MOMENTS},
        "case": result.case.model_dump(mode="json", exclude_defaults=True),
        "execution": execution and execution.to_json(),
        "test_result": test_result and _test_json(test_result),
        "spent": result.spent and asdict(result.spent),
    }


def from_json(members: Mapping[str, Any], artifacts: str) -> TaskResult:
    """The result that `to_json` made the members of.  Raises `ContractError`."""
    place = f"the result of case {members.get('index', '?')}"
    try:
        execution, test_result = members["execution"], members["test_result"]
        known = {
            **members,
            **{name: _moment(members[name]) for name in _MOMENTS},
            "case": TestCase.model_validate(members["case"]),
            "task_status": TaskStatus(members["task_status"]),
            "execution": execution and _execution(execution, artifacts),
            "test_result": test_result and _test_result(test_result),
            "spent": Spent(**members["spent"]) if members.get("spent") else None,
        }
        return TaskResult(**known)
    except (TypeError, KeyError, ValueError) as exc:
        raise ContractError(f"{place} can't be read: {exc}") from None


def _execution(members: Mapping[str, Any], artifacts: str) -> ExecutionResult:
    result = ExecutionResult.from_json(members)
    return replace(result, storage_base=artifacts) if result.storage_base == HERE else result


def _test_json(result: TestResult) -> dict[str, Any]:
    return {**asdict(result), "timestamp": result.timestamp.isoformat(), "status": result.status.value}


def _test_result(members: Mapping[str, Any]) -> TestResult:
    timestamp, status = datetime.fromisoformat(members["timestamp"]), TestStatus(members["status"])
    return TestResult(**{**members, "timestamp": timestamp, "status": status})


def _moment_text(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
