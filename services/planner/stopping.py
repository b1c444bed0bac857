"""When a plan ends before all its cases have run."""

from collections.abc import Callable

from services.planner.models import StopConditions
from services.planner.tasks import TaskResult, TaskStatus

Stopper = Callable[[TaskResult], str | None]
"""Called at every completion, in order; the first text that it returns stops the plan, with that reason."""

FAILURE_RATE_FROM = 10
"""Cases that must have ended before the part of them that failed means anything."""

UNSUCCESSFUL = frozenset({TaskStatus.FAILED, TaskStatus.TIMEOUT, TaskStatus.ERROR})


class Conditions:
    """The stop conditions that count cases, as a stopper of one execution."""

    def __init__(self, conditions: StopConditions) -> None:
        self._conditions = conditions
        self._ended = 0
        self._unsuccessful = 0

    def __call__(self, result: TaskResult) -> str | None:
        """Count the case; the reason to stop, if there is one now.  Cancelled cases don't count."""
        if result.task_status is TaskStatus.CANCELLED:
            return None
        self._ended += 1
        self._unsuccessful += result.task_status in UNSUCCESSFUL
        return self._too_many() or self._too_large_a_part()

    def _too_many(self) -> str | None:
        limit = self._conditions.max_failures
        if limit is None or self._unsuccessful < limit:
            return None
        return f"max_failures: {self._unsuccessful} of {self._ended} cases did not succeed"

    def _too_large_a_part(self) -> str | None:
        limit = self._conditions.failure_rate
        if limit is None or self._ended < FAILURE_RATE_FROM or self._unsuccessful < limit * self._ended:
            return None
        counts = f"{self._unsuccessful} of {self._ended} cases did not succeed"
        return f"failure_rate: {counts}; the limit is {limit:g}"
