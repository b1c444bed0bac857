"""Tasks: a case while it is executed, its statuses and their transitions, and its result, also as JSON."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, ClassVar, Final

from services.executor.outcome import Status
from services.planner.cost.usage import NO_USAGE, Usage
from services.planner.execution import ExecutionResult
from services.planner.models import TestCase
from shared.documents import kind
from shared.errors import ContractError, FullsendError

Now = Callable[[], datetime]
"""A clock: returns the current time, with a time zone."""


def utc_now() -> datetime:
    """Return the current time in UTC."""
    return datetime.now(UTC)


class TaskStatus(StrEnum):
    """The status of a case.

    FAILED is a fault of the tool.  ERROR is any other fault: a process that died, a store or a
    backend that can't be reached.
    """

    PENDING = "pending"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    ERROR = "error"


TRANSITIONS: Final[Mapping[TaskStatus, frozenset[TaskStatus]]] = {
    TaskStatus.PENDING: frozenset({TaskStatus.QUEUED, TaskStatus.CANCELLED}),
    TaskStatus.QUEUED: frozenset({TaskStatus.RUNNING, TaskStatus.CANCELLED}),
    TaskStatus.RUNNING: frozenset(
        {
            TaskStatus.QUEUED,  # for another attempt
            TaskStatus.SUCCEEDED,
            TaskStatus.FAILED,
            TaskStatus.TIMEOUT,
            TaskStatus.CANCELLED,
            TaskStatus.ERROR,
        }
    ),
    TaskStatus.SUCCEEDED: frozenset(),
    TaskStatus.FAILED: frozenset(),
    TaskStatus.TIMEOUT: frozenset(),
    TaskStatus.CANCELLED: frozenset(),
    TaskStatus.ERROR: frozenset(),
}
"""The statuses that may follow each status; a `queued` case begins as soon as there is capacity."""

TERMINAL: Final = frozenset(status for status, next_ones in TRANSITIONS.items() if not next_ones)
UNSUCCESSFUL: Final = frozenset({TaskStatus.FAILED, TaskStatus.TIMEOUT, TaskStatus.ERROR})
"""The statuses of cases that ended without success; cancelled ones are still to be run."""


class TransitionError(FullsendError):
    """A case can't go from one status to the other; a bug of the scheduler."""


class TestStatus(StrEnum):
    """The status of a test result."""

    __test__: ClassVar[bool] = False

    SUCCESS = "success"
    FAILED = "failed"
    TIMEOUT = "timeout"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class TestResult:
    """One result in the form that collectors of results use.

    Attributes:
        workflow_id: of the plan.
        execution_id: the id of the task.
        timestamp: when the task was created.
        status: of the result.
        execution_time: seconds from the start of the last attempt to its end; 0 if none began.
        tokens_used, cost: as the tool reports them, 0 if it doesn't; the unit of cost is the tool's.
        inputs, outputs: the parameters, and what the tool returned.
        error_message: why the case did not succeed; None if it did.
        error_type: the class of the exception; None if there was none, or it is not known.
        dataset: of the case.
        metadata: `dataset`, `scenario`, `attempt_count`, `task_status`, and the metadata of case and plan.
    """

    __test__: ClassVar[bool] = False

    workflow_id: str
    execution_id: str
    timestamp: datetime
    status: TestStatus
    execution_time: float
    tokens_used: int = 0
    cost: float = 0.0
    inputs: Mapping[str, Any] = field(default_factory=dict)
    outputs: Mapping[str, Any] = field(default_factory=dict)
    error_message: str | None = None
    dataset: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    error_type: str | None = None


@dataclass(frozen=True, slots=True)
class Spent:
    """What a tool reports to have used; the unit of cost is the tool's."""

    tokens_used: int = 0
    cost: float = 0.0


@dataclass(slots=True)
class Task:
    """One case of one execution of a plan.

    Attributes:
        task_id: unique.
        workflow_id, tool: of the plan.
        index: the index of the case in the manifest, from 0.
        case: the parameters of the run; its seed is set.
        created_at: when the execution began.
        task_status: is changed only by `move`.
        attempt_count: attempts that have begun.
        started_at, finished_at: of the last attempt.
        used: what the attempts that have ended have used of machines.
    """

    task_id: str
    workflow_id: str
    tool: str
    index: int
    case: TestCase
    created_at: datetime
    task_status: TaskStatus = TaskStatus.PENDING
    attempt_count: int = 0
    started_at: datetime | None = None
    finished_at: datetime | None = None
    used: Usage = NO_USAGE

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The parameters of the tool."""
        return self.case.parameters

    @property
    def seconds(self) -> float:
        """Seconds from the start of the last attempt to its end; 0 if none has begun or it has not ended."""
        if self.started_at is None or self.finished_at is None:
            return 0.0
        return max(0.0, (self.finished_at - self.started_at).total_seconds())

    def move(self, status: TaskStatus) -> None:
        """Enter another status.  Raises `TransitionError` if it can't follow the current one."""
        if status not in TRANSITIONS[self.task_status]:
            raise TransitionError(f"task {self.task_id} can't go from {self.task_status} to {status}")
        self.task_status = status


@dataclass(frozen=True, slots=True)
class TaskResult:
    """The result of a case; there is one for every case, whatever happened.

    Attributes:
        task_id, workflow_id, index, case: as in `Task`.
        task_status: the last status.
        created_at, started_at, finished_at: the latter two are None if no attempt began.
        execution_time: seconds from the start of the last attempt to its end; 0 if none began.
        attempt_count: attempts that have begun.
        error_type, error_message: why the case did not succeed; None if it did.
        execution: the result of the backend; None if no attempt began, or a function executed it.
        test_result: what a custom function returned, unchanged.
        spent: what the last attempt used; None unless the plan limits the cost and it could be read.
        used: what all attempts of this execution have used of machines.
    """

    task_id: str
    workflow_id: str
    index: int
    case: TestCase
    task_status: TaskStatus
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    execution_time: float = 0.0
    attempt_count: int = 0
    error_type: str | None = None
    error_message: str | None = None
    execution: ExecutionResult | None = None
    test_result: TestResult | None = None
    spent: Spent | None = None
    used: Usage = NO_USAGE

    @property
    def dataset(self) -> str:
        """The dataset of the case."""
        return self.case.dataset

    @property
    def seed(self) -> int | None:
        """The seed of the last attempt, if a backend has run it; else of the case."""
        executed = None if self.execution is None else self.execution.seed
        return self.case.seed if executed is None else executed


@dataclass(frozen=True, slots=True)
class RunStatistics:
    """The statistics of one execution.

    Attributes:
        total: all cases; the next five add up to it once the execution has ended.
        attempts: of all cases.
        execution_time: the sum of the durations of all last attempts, in seconds.
        wall_time: seconds from the start of the execution to its end.
    """

    total: int
    succeeded: int = 0
    failed: int = 0
    timeout: int = 0
    cancelled: int = 0
    error: int = 0
    attempts: int = 0
    execution_time: float = 0.0
    wall_time: float = 0.0

    @property
    def unsuccessful(self) -> int:
        """Cases that ended without success; cancelled cases don't count."""
        return self.failed + self.timeout + self.error


@dataclass(frozen=True, slots=True)
class RunExecutionResult:
    """The result of an execution of a plan.

    Attributes:
        workflow_id: of the plan.
        run_id: of this execution.
        task_results: one for each case, in the order of the cases.
        statistics: of the results.
        stopped: why it ended before all cases had run, a `GoalReached` if that is a success; else None.
        started_at, finished_at: of the execution.
    """

    workflow_id: str
    run_id: str
    task_results: tuple[TaskResult, ...]
    statistics: RunStatistics
    stopped: str | None
    started_at: datetime
    finished_at: datetime


TASK_STATUS_OF_RUN: Final[Mapping[Status, TaskStatus]] = {
    Status.COMPLETED: TaskStatus.SUCCEEDED,
    Status.FAILED: TaskStatus.FAILED,
    Status.TIMEOUT: TaskStatus.TIMEOUT,
    Status.CANCELLED: TaskStatus.CANCELLED,
    Status.LOST: TaskStatus.ERROR,
}
NOT_THE_TOOLS_FAULT: Final = frozenset(
    {"ToolCrashedError", "ArtifactError", "StoreError", "StoreUnavailableError"}
)
"""The types of errors that make the status of a failed run `error`."""


def status_of(result: ExecutionResult) -> TaskStatus:
    """Return the status of a case whose run has this result."""
    status = TASK_STATUS_OF_RUN[result.status]
    if status is TaskStatus.FAILED and result.error is not None and result.error.type in NOT_THE_TOOLS_FAULT:
        return TaskStatus.ERROR
    return status


OWN_ARTIFACTS: Final = "."
"""Stands for the directory of the plan's own artifacts, so that the plan can be moved."""

_MOMENTS: Final = ("created_at", "started_at", "finished_at")


def result_to_text(result: TaskResult, artifacts: str) -> str:
    """Return a result as JSON text; values of custom functions that JSON can't hold become their `repr`.

    Args:
        result: of a case.
        artifacts: the current directory of the plan's own artifacts.
    """
    return json.dumps(
        _result_json(result, artifacts), ensure_ascii=False, separators=(",", ":"), default=repr
    )


def result_from_text(text: str, artifacts: str) -> TaskResult:
    """Return the result in a text of `result_to_text`.  Raises `ContractError` if it can't be read."""
    try:
        members = json.loads(text)
    except ValueError as exc:
        raise ContractError(f"a result can't be read: {exc}; it starts with {text!r:.80}") from None
    if not isinstance(members, dict):
        raise ContractError(f"a result can't be read: it is {kind(members)}")
    return _result_of_json(members, artifacts)


def _result_json(result: TaskResult, artifacts: str) -> dict[str, Any]:
    """Return a result as plain values; the plan's own artifacts become relative to the plan."""
    members: dict[str, Any] = {one.name: getattr(result, one.name) for one in fields(TaskResult)}
    execution, test_result = result.execution, result.test_result
    if execution is not None and execution.storage_base == artifacts:
        execution = execution.moved_to(OWN_ARTIFACTS)
    return {
        **members,
        **{name: _moment_text(members[name]) for name in _MOMENTS},
        "case": result.case.model_dump(mode="json", exclude_defaults=True),
        "execution": execution and execution.to_json(),
        "test_result": test_result and _test_json(test_result),
        "spent": result.spent and asdict(result.spent),
        "used": result.used.to_json(),
    }


def _result_of_json(members: Mapping[str, Any], artifacts: str) -> TaskResult:
    """Return the result in the members of `_result_json`.  Raises `ContractError` if they can't be read."""
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
            "used": Usage.from_json(members["used"]) if members.get("used") else NO_USAGE,
        }
        return TaskResult(**known)
    except (TypeError, KeyError, ValueError) as exc:
        raise ContractError(f"{place} can't be read: {exc}") from None


def _execution(members: Mapping[str, Any], artifacts: str) -> ExecutionResult:
    result = ExecutionResult.from_json(members)
    return replace(result, storage_base=artifacts) if result.storage_base == OWN_ARTIFACTS else result


def _test_json(result: TestResult) -> dict[str, Any]:
    return {**asdict(result), "timestamp": result.timestamp.isoformat(), "status": result.status.value}


def _test_result(members: Mapping[str, Any]) -> TestResult:
    timestamp, status = datetime.fromisoformat(members["timestamp"]), TestStatus(members["status"])
    return TestResult(**{**members, "timestamp": timestamp, "status": status})


def _moment_text(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
