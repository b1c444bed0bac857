"""Reads the results of cases: outputs, numbers, tokens and cost, and converts them to test results."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import structlog

from services.planner.execution import ExecutionResult
from services.planner.tasks import RunStatistics, Spent, TaskResult, TaskStatus, TestResult, TestStatus
from shared.errors import ArtifactError

LOADED_MAX_BYTES: Final = 1_000_000
"""A stored result of up to this size is loaded as the outputs; of a larger one the reference is passed on."""

log = structlog.get_logger()

TEST_STATUS_OF_TASK: Final[Mapping[TaskStatus, TestStatus]] = {
    TaskStatus.SUCCEEDED: TestStatus.SUCCESS,
    TaskStatus.FAILED: TestStatus.FAILED,
    TaskStatus.TIMEOUT: TestStatus.TIMEOUT,
    TaskStatus.ERROR: TestStatus.ERROR,
    TaskStatus.CANCELLED: TestStatus.ERROR,
    TaskStatus.PENDING: TestStatus.ERROR,
    TaskStatus.QUEUED: TestStatus.ERROR,
    TaskStatus.RUNNING: TestStatus.ERROR,
}
TASK_STATUS_OF_TEST: Final[Mapping[TestStatus, TaskStatus]] = {
    TestStatus.SUCCESS: TaskStatus.SUCCEEDED,
    TestStatus.FAILED: TaskStatus.FAILED,
    TestStatus.TIMEOUT: TaskStatus.TIMEOUT,
    TestStatus.ERROR: TaskStatus.ERROR,
}
NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


class ResultConverter:
    """Converts task results to test results; blocks while it loads stored results."""

    @staticmethod
    def convert(
        task_result: TaskResult,
        metadata: Mapping[str, Any] = NOTHING,
        *,
        loaded_max_bytes: int = LOADED_MAX_BYTES,
    ) -> TestResult:
        """Convert one result.

        Args:
            task_result: the result of a case.
            metadata: of the plan.  Members of the case's own metadata take precedence over it, members
                that a custom function returned over both, and `dataset`, `scenario`, `attempt_count`
                and `task_status` over all.
            loaded_max_bytes: the size up to which a stored result is loaded as the outputs.

        Raises:
            ValueError: `task_result` is None.
        """
        if task_result is None:
            raise ValueError("task_result cannot be None")
        said = task_result.test_result or _converted(task_result, loaded_max_bytes)
        return TestResult(
            workflow_id=task_result.workflow_id,
            execution_id=task_result.task_id,
            timestamp=task_result.created_at,
            status=TEST_STATUS_OF_TASK[task_result.task_status],
            execution_time=task_result.execution_time,
            tokens_used=said.tokens_used,
            cost=said.cost,
            inputs=said.inputs,
            outputs=said.outputs,
            error_message=task_result.error_message,
            error_type=task_result.error_type,
            dataset=task_result.dataset,
            metadata={
                **metadata,
                **task_result.case.metadata,
                **said.metadata,
                "dataset": task_result.case.dataset,
                "scenario": task_result.case.scenario,
                "attempt_count": task_result.attempt_count,
                "task_status": task_result.task_status.value,
            },
        )

    @staticmethod
    def convert_batch(
        task_results: Iterable[TaskResult],
        metadata: Mapping[str, Any] = NOTHING,
        *,
        loaded_max_bytes: int = LOADED_MAX_BYTES,
    ) -> list[TestResult]:
        """Convert results, in their order; the arguments are those of `convert`.

        Raises:
            ValueError: `task_results` or one of them is None.
        """
        if task_results is None:
            raise ValueError("task_results cannot be None")
        return [
            ResultConverter.convert(one, metadata, loaded_max_bytes=loaded_max_bytes) for one in task_results
        ]


def spent_in(value: Any) -> Spent:
    """Return `tokens_used` and `cost` of a tool's result; 0 for what is missing or no number from 0."""
    return Spent(int(_number(value, "tokens_used")), _number(value, "cost"))


def load_spent(execution: ExecutionResult | None, said: TestResult | None = None) -> Spent:
    """Return the tokens and the cost of a run; a stored result is loaded for it, however large it is.

    Args:
        execution: the result of a backend.
        said: the result of a custom function, which takes precedence.

    Raises:
        ArtifactError: the result is stored and can't be read.
    """
    if said is not None:
        return spent_in({"tokens_used": said.tokens_used, "cost": said.cost})
    text = (execution and execution.result) or ""
    if execution is not None and text.startswith(STORED):
        text = execution.loader.load_text(text)
    return spent_in(_parsed(text))


def outputs_of(value: Any) -> Mapping[str, Any]:
    """Return a tool's result as an object: itself, or an object with the member `result`."""
    return value if isinstance(value, Mapping) else {"result": value}


def statistics_of(results: Sequence[TaskResult], wall_time: float) -> RunStatistics:
    """Count the results by status.

    Args:
        results: of all cases of an execution.
        wall_time: seconds from the start of the execution to its end.
    """
    counted = Counter(one.task_status for one in results)
    return RunStatistics(
        total=len(results),
        succeeded=counted[TaskStatus.SUCCEEDED],
        failed=counted[TaskStatus.FAILED],
        timeout=counted[TaskStatus.TIMEOUT],
        cancelled=counted[TaskStatus.CANCELLED],
        error=counted[TaskStatus.ERROR],
        attempts=sum(one.attempt_count for one in results),
        execution_time=math.fsum(one.execution_time for one in results),
        wall_time=wall_time,
    )


def _converted(result: TaskResult, loaded_max_bytes: int) -> TestResult:
    """Convert the result of a backend to what a custom function returns."""
    value = None if result.execution is None else _value(result.execution, loaded_max_bytes)
    is_there = value is not None or result.task_status is TaskStatus.SUCCEEDED
    spent = result.spent or _spent(result.execution, value)
    return TestResult(
        workflow_id=result.workflow_id,
        execution_id=result.task_id,
        timestamp=result.created_at,
        status=TEST_STATUS_OF_TASK[result.task_status],
        execution_time=result.execution_time,
        tokens_used=spent.tokens_used,
        cost=spent.cost,
        inputs=result.case.parameters,
        outputs=outputs_of(value) if is_there else {},
    )


def _spent(execution: ExecutionResult | None, value: Any) -> Spent:
    """Read tokens and cost from the value, or from the store if the value is only a reference."""
    if execution is None or not (isinstance(value, str) and value == execution.result):
        return spent_in(value)
    try:
        return load_spent(execution)
    except (ArtifactError, OSError) as exc:
        log.warning("result.not_read", run_id=execution.run_id, reason=str(exc))
        return Spent()


def _value(execution: ExecutionResult, loaded_max_bytes: int) -> Any:
    """Return what the tool returned, or its reference if that is too large or can't be loaded."""
    text = execution.result
    if text is None:
        return None
    if text.startswith(STORED):
        content = _loaded(execution, text, loaded_max_bytes)
        if content is None:
            return text
        text = content.decode(errors="replace")
    return _parsed(text)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _loaded(execution: ExecutionResult, reference: str, max_bytes: int) -> bytes | None:
    content = bytearray()
    try:
        with execution.loader.open(reference) as chunks:
            for chunk in chunks:
                content += chunk
                if len(content) > max_bytes:
                    return None
    except (ArtifactError, OSError):
        return None
    return bytes(content)


def _number(value: Any, name: str) -> float:
    said = value.get(name) if isinstance(value, Mapping) else None
    number = None if isinstance(said, bool) else finite_number(said)
    return number if number is not None and number >= 0 else 0.0


STORED: Final = "cas://"
"""The beginning of a result that is too large for its record, and is stored with the artifacts."""


def is_stored(result: TaskResult) -> bool:
    """Return whether the value that the tool returned has to be loaded from a store."""
    return result.execution is not None and (result.execution.result or "").startswith(STORED)


def inline_value(result: TaskResult) -> Any:
    """Return what the tool returned; None if that is nothing or has to be loaded from a store."""
    return None if is_stored(result) else returned_value(result)


def returned_value(result: TaskResult) -> Any:
    """Return what the tool returned, None if nothing.  Blocks while it loads a stored value.

    Raises:
        ArtifactError: the value is stored and can't be read, or is not JSON.
    """
    if result.test_result is not None:
        return result.test_result.outputs
    if result.execution is None or result.execution.result is None:
        return None
    text = result.execution.result
    if is_stored(result):
        text = result.execution.loader.load_text(text)
    try:
        return json.loads(text)
    except ValueError as exc:
        raise ArtifactError(f"the result of case {result.index} is not JSON: {exc}") from None


def flattened(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the members of nested objects by their full names, joined by dots; a dot in a name is `\\.`.

    A value that is no object, or an empty one, is yielded under `name`; lists are values.
    """
    if not isinstance(value, Mapping) or not value:
        yield name, value
        return
    for key, one in value.items():
        part = str(key).replace(".", "\\.")
        yield from flattened(one, f"{name}.{part}" if name else part)


def numeric_members(value: Any) -> Iterator[tuple[str, float]]:
    """Yield the finite numbers among the members, by their full names; true is 1 and false 0."""
    for name, one in flattened(value):
        number = finite_number(one)
        if number is not None:
            yield name, number


def finite_number(value: Any) -> float | None:
    """Return `value` as a finite float, or None if it is no finite number."""
    if not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
