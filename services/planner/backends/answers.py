"""What a call of the fleet comes to: as its run's record says, or without one."""

import dataclasses
import time
from collections.abc import Mapping

from services.executor.cancellation import RunCancelledError
from services.executor.outcome import Status
from services.planner.backends.awaiting import Awaiting
from services.planner.execution import ErrorInfo, ExecutionResult, result_of_record
from shared.errors import ExperimentNotFoundError, FullsendError

_TOO_OLD = "an executor took the run that is too old for a plan's runs; update it"


class RunLostError(FullsendError):
    """Redis doesn't know the run any more, and nobody can say what it came to."""


class Answers:
    """Makes the results of calls.

    Args:
        storage_type, storage_base: of the store of artifacts that the executors use.
    """

    def __init__(self, storage_type: str, storage_base: str) -> None:
        self._storage = storage_type, storage_base

    def of_record(self, one: Awaiting, record: Mapping[str, str]) -> ExecutionResult:
        """What the record says, under the id and of the values that the call has."""
        options, result = one.call.options, result_of_record(record, *self._storage)
        error = result.error
        if error is not None and error.type == ExperimentNotFoundError.__name__:
            error = dataclasses.replace(error, message=_TOO_OLD, retryable=True)
        return dataclasses.replace(
            result,
            run_id=options.run_id,
            parameters=one.call.parameters,
            seed=options.policy.seed,
            error=error,
        )

    def cancelled(self, one: Awaiting, reason: str) -> ExecutionResult:
        """It was to end, and has no record that says so."""
        return self._without_record(one, Status.CANCELLED, ErrorInfo(RunCancelledError.__name__, reason))

    def failed(self, one: Awaiting, exc: Exception) -> ExecutionResult:
        """It could not be queued, or could not be followed to its end."""
        is_lost = isinstance(exc, RunLostError)
        error = ErrorInfo(type(exc).__name__, str(exc), retryable=is_lost)
        return self._without_record(one, Status.LOST if is_lost else Status.FAILED, error)

    def _without_record(self, one: Awaiting, status: Status, error: ErrorInfo) -> ExecutionResult:
        options, (storage_type, storage_base) = one.call.options, self._storage
        return ExecutionResult(
            run_id=options.run_id,
            status=status,
            storage_type=storage_type,
            storage_base=storage_base,
            error=error,
            execution_time_ms=round((time.monotonic() - one.since) * 1_000),
            parameters=one.call.parameters,
            seed=options.policy.seed,
        )
