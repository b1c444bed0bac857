"""What a plan may use: counted while it is executed, and what it had used before."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

import structlog

from services.planner.models import Budget
from services.planner.results import STORED, load_spent
from services.planner.scheduling.attempts import AttemptOutcome
from services.planner.tasks import Spent, Task, TaskResult
from shared.errors import ArtifactError, PlanError
from shared.threads import Threads

log = structlog.get_logger()

READ_AT_ONCE: Final = 8
"""Stored results that are loaded side by side to find out what they cost; each may be large."""


@dataclass(frozen=True, slots=True)
class BudgetUse:
    """What a plan had used before.

    Attributes:
        runs: attempts that had begun, whatever became of them.
        seconds: of all of them together.
        cost: of all of them together.
    """

    runs: int = 0
    seconds: float = 0.0
    cost: float = 0.0


NOTHING: Final = BudgetUse()


class BudgetTracker:
    """What is left of the budget of one plan; counts while the plan is executed.

    An attempt counts as a run when it begins, so that there is never one too many.  Its
    seconds and its cost are known when it has ended.

    Args:
        budget: of the plan.
        used: what it had used before.
    """

    def __init__(self, budget: Budget, used: BudgetUse = NOTHING) -> None:
        self._budget = budget
        self._runs, self._seconds, self._cost = used.runs, used.seconds, used.cost
        self._trouble: str | None = None
        self._threads = Threads(READ_AT_ONCE)

    @property
    def out_of_runs(self) -> str | None:
        """Why no other attempt may begin, None while one may."""
        limit = self._budget.max_runs
        return f"the budget of {limit:,} runs is used up" if limit and self._runs >= limit else None

    @property
    def used_up(self) -> str | None:
        """What else is used up, None while nothing is."""
        budget = self._budget
        if budget.max_seconds is not None and self._seconds >= budget.max_seconds:
            return f"the budget of {budget.max_seconds:g} seconds is used up"
        if budget.max_cost is not None and self._cost >= budget.max_cost:
            return f"the budget of a cost of {budget.max_cost:g} is used up"
        return self._trouble

    def attempt_began(self) -> None:
        """Count an attempt that begins."""
        self._runs += 1

    async def with_cost(self, task: Task, outcome: AttemptOutcome) -> AttemptOutcome:
        """The ending of an attempt with what it used, if the budget asks for that; may wait for a store.

        What can't be read uses up a budget of cost, as nobody knows how much of it is left.
        """
        if self._budget.max_cost is None:
            return outcome
        try:
            return replace(outcome, spent=await self._spent(outcome))
        except Exception as exc:  # a backend may have returned anything
            log.warning("cost.not_read", task_id=task.task_id, reason=str(exc))
            self._trouble = self._trouble or _unknown(self._budget, task.index, exc)
            return outcome

    def attempt_ended(self, seconds: float, spent: Spent | None) -> None:
        """Count an attempt that has ended."""
        self._seconds += seconds
        self._cost += spent.cost if spent else 0.0

    async def _spent(self, outcome: AttemptOutcome) -> Spent:
        execution = outcome.execution
        if execution is not None and (execution.result or "").startswith(STORED):
            return await self._threads.run(load_spent, execution)
        return load_spent(execution, outcome.test_result)


def cost_of(results: Iterable[TaskResult], budget: Budget) -> float:
    """What these cost together; may wait for a store.  Raises `PlanError`: what one cost can't be read."""
    costs = []
    for result in results:
        try:
            spent = result.spent or load_spent(result.execution, result.test_result)
        except (ArtifactError, OSError) as exc:
            raise PlanError(_unknown(budget, result.index, exc)) from exc
        costs.append(spent.cost)
    return math.fsum(costs)


def _unknown(budget: Budget, index: int, exc: Exception) -> str:
    """Why a budget of cost can't be kept."""
    return (
        f"the budget of a cost of {budget.max_cost:g} can't be kept: "
        f"what case {index} cost is in a result that can't be read: {exc}"
    )
