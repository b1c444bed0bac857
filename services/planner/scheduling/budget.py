"""When another attempt may begin: the pace of a plan, and its budget of runs, seconds, cost and money."""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

import structlog

from services.planner.cost import UNPRICED, Tariff, Usage
from services.planner.cost.ledger import Ledger
from services.planner.models import Budget, ExecutionPolicy, RateLimit, RetryPolicy
from services.planner.results import STORED, load_spent
from services.planner.scheduling.attempts import AttemptOutcome
from services.planner.tasks import Spent, Task, TaskResult, utc_now
from shared.backoff import Backoff, Dice
from shared.errors import ArtifactError, PlanError
from shared.threads import Threads

log = structlog.get_logger()

HALF_MS: Final = 0.5
"""Backends round durations to milliseconds; a run of less than one would have taken none."""

READ_AT_ONCE: Final = 8
"""How many stored results are loaded at once to read their cost; each may be large."""


@dataclass(frozen=True, slots=True)
class BudgetUse:
    """What earlier executions of a plan have used.

    Attributes:
        runs: attempts that had begun, whatever their outcome.
        seconds: the sum of their durations.
        cost: the sum of their costs, in the tool's unit.
        money: what the platform charges for them.
    """

    runs: int = 0
    seconds: float = 0.0
    cost: float = 0.0
    money: float = 0.0


NOTHING: Final = BudgetUse()
_RAISE: Final = "; raise `budget.{}` to go on"
_RAISED: Final = re.compile(r"; raise `budget\.(\w+)` to go on")


def member_to_raise(reason: str | None) -> str | None:
    """Return which member of the budget stopped a plan that was stopped for this reason; None if none did."""
    found = _RAISED.search(reason or "")
    return found and found[1]


def require_prices(budget: Budget, tariff: Tariff) -> None:
    """Raise `PlanError` if the budget is of money and no prices are known; it says what to do."""
    if budget.max_money is not None and tariff.rates is None:
        missing = tariff.missing or "no prices are known; give a `tariff` that has some"
        raise PlanError(f"the budget has `max_money`, which can't be kept: {missing}")


class BudgetTracker:
    """Counts what one execution uses of the budget of its plan.

    An attempt counts as a run when it begins, so that there is never one too many.  Its seconds
    and its cost are counted when it has ended, and its money while it runs.

    Args:
        budget: of the plan.
        used: what earlier executions have used.
        tariff: what a run holds and costs.
        places: how many attempts may run at once.
        now: the clock.

    Raises:
        PlanError: the budget is of money and the tariff has no prices.
    """

    def __init__(
        self,
        budget: Budget,
        used: BudgetUse = NOTHING,
        tariff: Tariff = UNPRICED,
        places: int = 1,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        require_prices(budget, tariff)
        self._budget = budget
        self._tariff = tariff
        self._ledger = Ledger(budget.max_money, tariff, used.money, places, now)
        self._runs, self._seconds, self._cost = used.runs, used.seconds, used.cost
        self._trouble: str | None = None
        self._threads = Threads(READ_AT_ONCE)

    @property
    def refusal(self) -> str | None:
        """Why no further attempt may begin while others end by themselves; None if one may."""
        limit = self._budget.max_runs
        if limit and self._runs >= limit:
            return f"the budget of {limit:,} runs is used up" + _RAISE.format("max_runs")
        reason = self._ledger.exhausted
        return reason and reason + _RAISE.format("max_money")

    @property
    def used_up(self) -> str | None:
        """Why the plan must stop at once: seconds or cost are used up, or unknown; None if it may go on."""
        budget = self._budget
        if budget.max_seconds is not None and self._seconds >= budget.max_seconds:
            return f"the budget of {budget.max_seconds:g} seconds is used up" + _RAISE.format("max_seconds")
        if budget.max_cost is not None and self._cost >= budget.max_cost:
            return f"the budget of a cost of {budget.max_cost:g} is used up" + _RAISE.format("max_cost")
        return self._trouble

    @property
    def limits_money(self) -> bool:
        """Whether there is a budget of money."""
        return self._budget.max_money is not None

    @property
    def out_of_money(self) -> str:
        """Say that running attempts have to be cancelled, or the budget of money would be exceeded."""
        return self._ledger.used_up + _RAISE.format("max_money")

    def seconds_left(self) -> float | None:
        """Return after how many seconds `out_of_money` holds if no attempt ends; None if never."""
        return self._ledger.seconds_left()

    def attempt_began(self, task: Task) -> None:
        """Count the start of an attempt."""
        self._runs += 1
        self._ledger.began(task.index)

    async def with_cost(self, task: Task, outcome: AttemptOutcome) -> AttemptOutcome:
        """Return the outcome with the cost of the attempt, if the budget limits the cost.

        Loads a stored result.  A cost that can't be read uses up the budget: nothing tells how much
        of it is left.
        """
        if self._budget.max_cost is None:
            return outcome
        try:
            return replace(outcome, spent=await self._spent(outcome))
        except Exception as exc:  # a backend may have returned anything
            log.warning("cost.not_read", task_id=task.task_id, reason=str(exc))
            self._trouble = self._trouble or _unknown(self._budget, task.index, exc)
            return outcome

    def attempt_ended(self, task: Task, outcome: AttemptOutcome) -> None:
        """Count the end of an attempt, also in what the task has used."""
        self._seconds += task.seconds
        self._cost += outcome.spent.cost if outcome.spent else 0.0
        usage = self._usage(task, outcome)
        task.used += usage
        self._ledger.ended(task.index, usage)

    def _usage(self, task: Task, outcome: AttemptOutcome) -> Usage:
        execution = outcome.execution
        if execution is None:
            return self._tariff.usage(task.seconds)
        seconds = task.seconds
        if execution.execution_time_ms is not None:  # without the time in a queue of the backend
            seconds = min(seconds, (execution.execution_time_ms + HALF_MS) / 1_000)
        return self._tariff.usage(seconds, execution.cpu_seconds, execution.peak_rss_bytes)

    async def _spent(self, outcome: AttemptOutcome) -> Spent:
        execution = outcome.execution
        if execution is not None and (execution.result or "").startswith(STORED):
            return await self._threads.run(load_spent, execution)
        return load_spent(execution, outcome.test_result)


def cost_of(results: Iterable[TaskResult], budget: Budget) -> float:
    """Return the sum of the costs of these results; blocks while it loads stored ones.

    Raises:
        PlanError: the cost of a result can't be read.
    """
    costs = []
    for result in results:
        try:
            spent = result.spent or load_spent(result.execution, result.test_result)
        except (ArtifactError, OSError) as exc:
            raise PlanError(_unknown(budget, result.index, exc)) from exc
        costs.append(spent.cost)
    return math.fsum(costs)


def _unknown(budget: Budget, index: int, exc: Exception) -> str:
    """Say why a budget of cost can't be kept."""
    return (
        f"the budget of a cost of {budget.max_cost:g} can't be kept: "
        f"the cost of case {index} is in a result that can't be read: {exc}"
    )


class RateLimiter:
    """Assigns each attempt a start time that keeps the rate limit, in the order of the calls.

    This is the generic cell rate algorithm (ITU-T I.371, virtual scheduling algorithm), which is
    equivalent to a bucket of `burst` tokens that is refilled evenly.  An assigned time is used up
    whether the attempt begins or not, so no caller has to ask twice.  A clock that is set back
    counts as one that stands still.

    Args:
        limit: attempts per minute and burst; None for no limit.
        now: the clock.
    """

    def __init__(self, limit: RateLimit | None, now: Callable[[], datetime]) -> None:
        self._limit = limit
        self._now = now
        self._seen = now()
        self._elapsed_seconds = 0.0
        self._arrival_seconds = 0.0

    def reserve(self) -> float:
        """Reserve the next start time; return the seconds until then, 0 for now."""
        if self._limit is None:
            return 0.0
        interval_seconds = 60 / self._limit.per_minute
        now_seconds = self._clock()
        tolerated_seconds = interval_seconds * (self._limit.burst - 1)
        wait_seconds = max(0.0, self._arrival_seconds - tolerated_seconds - now_seconds)
        self._arrival_seconds = max(self._arrival_seconds, now_seconds) + interval_seconds
        return wait_seconds

    def _clock(self) -> float:
        now = self._now()
        self._elapsed_seconds += max(0.0, (now - self._seen).total_seconds())
        self._seen = now
        return self._elapsed_seconds


def batch_size(policy: ExecutionPolicy, cases: int) -> int:
    """Return the size of a batch for a number of cases, at least 1; a pause follows each batch.

    Without a pause all cases are one batch: smaller ones would only delay the next cases.
    """
    size = policy.batch_size if policy.backoff_seconds else None
    return max(1, min(size or cases, cases))


def retry_pause_seconds(
    policy: RetryPolicy, attempt: int, dice: Dice, asked_seconds: float | None = None
) -> float:
    """Return the seconds between failed attempt number `attempt` (from 1) and the next, a day at most.

    They are not fewer than the tool asks for.
    """
    backoff = Backoff(
        policy.backoff_seconds, factor=policy.backoff_multiplier, jitter=(-policy.jitter, policy.jitter)
    )
    return backoff.pause_seconds(attempt, dice, asked_seconds)
