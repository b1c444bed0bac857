"""What cases came to, for those who collect results: tokens, cost and outputs found, states translated."""

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

LOADED_MAX_BYTES = 1_000_000
"""A stored result up to this size becomes the outputs; of a larger one the reference is passed on."""

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
    """Makes test results of task results.  Loads stored results, so it may wait for a disk or a network."""

    @staticmethod
    def convert(task_result: TaskResult, metadata: Mapping[str, Any] = NOTHING) -> TestResult:
        """The test result.

        Args:
            task_result: what a case came to.
            metadata: of the plan; the case's own goes before it, what a custom function says before
                both, and `dataset`, `scenario`, `attempt_count` and `task_status` before all.

        Raises:
            ValueError: `task_result` is None.
        """
        if task_result is None:
            raise ValueError("task_result cannot be None")
        said = task_result.test_result or _said(task_result)
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
        task_results: Iterable[TaskResult], metadata: Mapping[str, Any] = NOTHING
    ) -> list[TestResult]:
        """The test results, in the same order.  Raises `ValueError` if there is None for it or in it."""
        if task_results is None:
            raise ValueError("task_results cannot be None")
        return [ResultConverter.convert(one, metadata) for one in task_results]


def spent_in(value: Any) -> Spent:
    """What a tool's result says of `tokens_used` and `cost`, 0 where it says nothing that makes sense."""
    return Spent(int(_number(value, "tokens_used")), _number(value, "cost"))


def load_spent(execution: ExecutionResult | None, said: TestResult | None = None) -> Spent:
    """What was used; a stored result is loaded for it, however large it is.

    Args:
        execution: what a backend says.
        said: what a custom function returned.

    Raises:
        ArtifactError: it is stored and can't be read.
    """
    if said is not None:
        return spent_in({"tokens_used": said.tokens_used, "cost": said.cost})
    text = (execution and execution.result) or ""
    if execution is not None and text.startswith(STORED):
        text = execution.loader.load_text(text)
    return spent_in(_parsed(text))


def outputs_of(value: Any) -> Mapping[str, Any]:
    """A tool's result as an object: as it is, or as the member `result` of one."""
    return value if isinstance(value, Mapping) else {"result": value}


def statistics_of(results: Sequence[TaskResult], wall_time: float) -> RunStatistics:
    """How cases that have all ended did so."""
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


def _said(result: TaskResult) -> TestResult:
    """What a tool that a backend executed says, in the same words as a custom function."""
    value = None if result.execution is None else _value(result.execution)
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
    """What the value says; where there is only its reference, what it leads to says, if it can be read."""
    if execution is None or not (isinstance(value, str) and value == execution.result):
        return spent_in(value)
    try:
        return load_spent(execution)
    except (ArtifactError, OSError) as exc:
        log.warning("result.not_read", run_id=execution.run_id, reason=str(exc))
        return Spent()


def _value(execution: ExecutionResult) -> Any:
    """What the tool returned; its reference where it is too large, or can't be loaded."""
    text = execution.result
    if text is None:
        return None
    if text.startswith(STORED):
        content = _loaded(execution, text)
        if content is None:
            return text
        text = content.decode(errors="replace")
    return _parsed(text)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _loaded(execution: ExecutionResult, reference: str) -> bytes | None:
    content = bytearray()
    try:
        with execution.loader.open(reference) as chunks:
            for chunk in chunks:
                content += chunk
                if len(content) > LOADED_MAX_BYTES:
                    return None
    except (ArtifactError, OSError):
        return None
    return bytes(content)


def _number(value: Any, name: str) -> float:
    said = value.get(name) if isinstance(value, Mapping) else None
    number = None if isinstance(said, bool) else finite_number(said)
    return number if number is not None and number >= 0 else 0.0


STORED: Final = "cas://"
"""How a result begins that is too large for its place, and was stored beside the artifacts."""


def is_stored(result: TaskResult) -> bool:
    """Whether what the tool returned has to be loaded first."""
    return result.execution is not None and (result.execution.result or "").startswith(STORED)


def inline_value(result: TaskResult) -> Any:
    """What the tool returned, None where that is nothing, or would have to be loaded first."""
    return None if is_stored(result) else returned_value(result)


def returned_value(result: TaskResult) -> Any:
    """What the tool returned, None if nothing; may wait for a disk or a network.

    Raises:
        ArtifactError: it is stored and can't be read.
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
    """The members of nested objects by their full names, with dots in between; a dot in a name is `\\.`.

    A value that is no object has the name that was given; lists are not taken apart.
    """
    if not isinstance(value, Mapping) or not value:
        yield name, value
        return
    for key, one in value.items():
        part = str(key).replace(".", "\\.")
        yield from flattened(one, f"{name}.{part}" if name else part)


def numeric_members(value: Any) -> Iterator[tuple[str, float]]:
    """The finite numbers among the members; truth is 1 and falsehood 0."""
    for name, one in flattened(value):
        number = finite_number(one)
        if number is not None:
            yield name, number


def finite_number(value: Any) -> float | None:
    """`value` as a finite float, None if it is none."""
    if not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
