"""The dispatcher: which case of a plan begins when, what follows an attempt, and what stops the plan.

    PENDING -> QUEUED -> RUNNING -> its ending
                  ^         |
                  '- pause -'   another attempt follows

One task begins attempts, one after another, whenever a case is ready and fewer attempts run
than may.  Whatever stops the plan calls `Dispatcher.stop`: no attempt begins any more, running
ones are cancelled, and so are the cases that are left.
"""

import asyncio
import contextlib
import functools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, Protocol

import structlog

from services.executor.isolation.calls import Event
from services.planner.cancellation import CancellationToken
from services.planner.models import ExecutionPolicy
from services.planner.scheduling.attempts import AttemptOutcome, AttemptRunner, call_function, cancelled
from services.planner.scheduling.budget import BudgetTracker, RateLimiter, batch_size, retry_pause_seconds
from services.planner.scheduling.early_stop import FailureLimits, Stopper
from services.planner.tasks import Task, TaskResult, TaskStatus
from shared.backoff import Dice


class Listener(Protocol):
    """Receives what happens in an execution, in its event loop; must not block."""

    def on_status(self, task: Task) -> None:
        """A task has entered another status."""

    def on_result(self, result: TaskResult) -> None:
        """A case has its result; called once for every case."""

    def on_event(self, task: Task, event: Event) -> None:
        """A tool has reported something while it runs."""


class _Silent:
    def on_status(self, task: Task) -> None: ...

    def on_result(self, result: TaskResult) -> None: ...

    def on_event(self, task: Task, event: Event) -> None: ...


SILENT: Final[Listener] = _Silent()
"""A listener that does nothing."""


log = structlog.get_logger()

CANCEL_SECONDS: Final = 5.0
"""How long a cancelled attempt may take to end; then its task is cancelled."""

INTERRUPTED: Final = "the execution was interrupted"
"""The reason if the task that executes the plan is cancelled, without a reason of its own."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """What an execution needs besides its plan; the members are arguments of `TaskScheduler`."""

    now: Callable[[], datetime]
    sleep: Callable[[float], Any]
    dice: Dice
    listener: Listener
    stoppers: tuple[Stopper, ...]
    cancel_seconds: float


@dataclass(slots=True)
class _RunningAttempt:
    """A running attempt."""

    cancel: asyncio.Event
    worker: asyncio.Task[None] | None = None
    is_abandoned: bool = False


class Dispatcher:
    """Executes the tasks of one plan, once.

    Args:
        tasks: one for each case, in the order in which they begin.
        policy: of the plan.
        runner: runs attempts.
        max_running: returns how many attempts may run at once, given the policy's concurrency.
        hooks: clock, sleep, dice, listener and stoppers.
        tracker: counts what is used of the plan's budget.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        policy: ExecutionPolicy,
        runner: AttemptRunner,
        max_running: Callable[[int], int],
        hooks: Hooks,
        tracker: BudgetTracker,
    ) -> None:
        self._tasks = tasks
        self._policy = policy
        self._runner = runner
        self._max_running = max_running
        self._hooks = hooks
        self._pace = RateLimiter(policy.rate_control, hooks.now)
        self._budget = tracker
        self._stoppers: tuple[Stopper, ...] = (FailureLimits(policy.stop_conditions), *hooks.stoppers)
        self._results: dict[int, TaskResult] = {}
        self._outcomes: dict[int, AttemptOutcome] = {}  # of cases that wait for a retry
        self._ready: deque[Task] = deque()
        self._running: dict[int, _RunningAttempt] = {}
        self._pausing: set[asyncio.Task[Any]] = set()
        self._changed = asyncio.Event()
        self._money_changed = asyncio.Event()
        self._group = asyncio.TaskGroup()
        self._dispatcher: asyncio.Task[None] | None = None
        self._reason: str | None = None

    @property
    def stopped(self) -> str | None:
        """Why cases were cancelled; None if none was."""
        has_cancelled = any(one.task_status is TaskStatus.CANCELLED for one in self._results.values())
        return self._reason if has_cancelled else None

    async def run(self, token: CancellationToken | None, criteria: Stopper) -> tuple[TaskResult, ...]:
        """Execute all tasks, and return their results in the order of the tasks.

        Args:
            token: stops the plan.
            criteria: the stopper of the evaluator's criteria, called after all other stoppers.
        """
        self._stoppers += (criteria,)
        reason = (token and token.reason) or self._budget.used_up
        try:
            if reason is not None:
                self.stop(reason)
            else:
                await self._run(token)
        finally:
            self._cancel_the_rest()
        return tuple(self._results[task.index] for task in self._tasks)

    async def _run(self, token: CancellationToken | None) -> None:
        async with self._group as group:
            self._dispatcher = group.create_task(self._dispatch())
            watches = [
                group.create_task(self._until_cancelled(token)),
                group.create_task(self._until_timeout()),
                group.create_task(self._until_out_of_money()),
            ]
            self._dispatcher.add_done_callback(lambda _: [watch.cancel() for watch in watches])

    # -- stopping -------------------------------------------------------------------------

    def stop(self, reason: str) -> None:
        """Begin no attempt any more and cancel the running ones; the first reason counts."""
        if self._reason is not None:
            return
        self._reason = reason
        for waiting in (self._dispatcher, *self._pausing):
            if waiting is not None:
                waiting.cancel()
        for call in self._running.values():
            call.cancel.set()
        if self._running:
            asyncio.get_running_loop().call_later(self._hooks.cancel_seconds, self._abandon)

    def _abandon(self) -> None:
        for call in self._running.values():
            call.is_abandoned = True
            if call.worker is not None:
                call.worker.cancel()

    async def _until_cancelled(self, token: CancellationToken | None) -> None:
        if token is not None:
            self.stop(await token.wait())

    async def _until_timeout(self) -> None:
        limit_seconds = self._policy.stop_conditions.timeout
        if limit_seconds is not None:
            await asyncio.sleep(limit_seconds)
            self.stop(f"timeout: the plan took more than {limit_seconds:g} s")

    async def _until_out_of_money(self) -> None:
        while self._budget.limits_money:
            self._money_changed.clear()
            seconds = self._budget.seconds_left()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._money_changed.wait()
                continue
            if self._budget.seconds_left() == 0:
                self.stop(self._budget.out_of_money)

    def _cancel_the_rest(self) -> None:
        left = [task for task in self._tasks if task.index not in self._results]
        if left and self._reason is None:
            self._reason = INTERRUPTED
        for task in left:
            if task.task_status is TaskStatus.RUNNING:
                task.finished_at = self._hooks.now()
            last = self._outcomes.get(task.index)
            self._end(task, cancelled(INTERRUPTED, last.execution if last else None))

    # -- beginning ------------------------------------------------------------------------

    async def _dispatch(self) -> None:
        for number, batch in enumerate(self._batches()):
            if number and self._budget.refusal is None:
                await self._sleep(self._policy.backoff_seconds)
            for task in batch:
                self._set_status(task, TaskStatus.QUEUED)
            self._ready.extend(batch)
            await self._begin_until(batch[-1].index + 1)
            if self._reason is not None:
                return

    def _batches(self) -> Iterator[Sequence[Task]]:
        size = batch_size(self._policy, len(self._tasks))
        for first in range(0, len(self._tasks), size):
            yield self._tasks[first : first + size]

    async def _begin_until(self, until: int) -> None:
        """Begin ready tasks until `until` cases have ended.

        When the budget has no run and no money left, the running attempts come to their end first.
        """
        while len(self._results) < until and self._reason is None:
            refusal = self._budget.refusal
            has_capacity = len(self._running) < self._max_running(self._policy.concurrency)
            if refusal is not None and not self._running:
                self.stop(refusal)
            elif refusal is None and self._ready and has_capacity:
                await self._sleep(self._pace.reserve())
                if self._reason is None:
                    self._begin(self._ready.popleft())
            else:
                self._changed.clear()
                await self._changed.wait()

    def _begin(self, task: Task) -> None:
        self._budget.attempt_began(task)
        task.attempt_count += 1
        task.started_at, task.finished_at = self._hooks.now(), None
        call = self._running[task.index] = _RunningAttempt(asyncio.Event())
        self._set_status(task, TaskStatus.RUNNING)
        self._money_changed.set()
        call.worker = self._group.create_task(self._attempt(task, call))

    async def _sleep(self, seconds: float) -> None:
        if seconds <= 0:
            return
        called = await call_function(self._hooks.sleep, seconds)
        if called.error is not None:
            self.stop(f"sleep_fn failed with {type(called.error).__name__}: {called.error}")

    # -- ending ---------------------------------------------------------------------------

    async def _attempt(self, task: Task, call: _RunningAttempt) -> None:
        outcome = await self._outcome_of(task, call)
        self._budget.attempt_ended(task, outcome)
        del self._running[task.index]
        self._money_changed.set()
        self._changed.set()
        if self._is_worth_another(task, outcome):
            await self._pause(task, outcome)
        else:
            self._end(task, outcome)

    async def _outcome_of(self, task: Task, call: _RunningAttempt) -> AttemptOutcome:
        on_event = functools.partial(self._notify, self._hooks.listener.on_event, task)
        outcome: AttemptOutcome | None = None
        try:
            outcome = await self._runner.run(task, call.cancel, on_event)
            task.finished_at = self._hooks.now()
            return await self._budget.with_cost(task, outcome)
        except asyncio.CancelledError:
            if not call.is_abandoned:
                raise
            task.finished_at = task.finished_at or self._hooks.now()
            return outcome or cancelled(INTERRUPTED)

    def _is_worth_another(self, task: Task, outcome: AttemptOutcome) -> bool:
        if self._reason is not None or _current().cancelling():
            return False
        return outcome.retryable and task.attempt_count < self._policy.retry_policy.max_attempts

    async def _pause(self, task: Task, outcome: AttemptOutcome) -> None:
        """Pause before the next attempt; a waiting task doesn't count as running."""
        self._outcomes[task.index] = outcome
        self._set_status(task, TaskStatus.QUEUED)
        current = _current()
        self._pausing.add(current)
        try:
            if reason := self._budget.used_up:
                self.stop(reason)
                return
            asked = outcome.error.retry_after_seconds if outcome.error else None
            policy, dice = self._policy.retry_policy, self._hooks.dice
            await self._sleep(retry_pause_seconds(policy, task.attempt_count, dice, asked))
        finally:
            self._pausing.discard(current)
        self._ready.appendleft(task)  # cases that have begun go before new ones
        self._changed.set()

    def _end(self, task: Task, outcome: AttemptOutcome) -> None:
        if outcome.status is TaskStatus.CANCELLED and self._reason is not None:
            outcome = replace(outcome, error=cancelled(self._reason).error)
        self._outcomes.pop(task.index, None)
        self._set_status(task, outcome.status)
        result = self._results[task.index] = outcome.result_of(task)
        self._notify(self._hooks.listener.on_result, result)
        if self._reason is None:
            self._apply_stoppers(result)

    def _apply_stoppers(self, result: TaskResult) -> None:
        """Pass the result to every stopper, and stop if one returns a reason."""
        try:
            reasons = [self._budget.used_up, *(stopper(result) for stopper in self._stoppers)]
        except Exception as exc:
            log.exception("stopper.failed", task_id=result.task_id)
            reasons = [f"a stop condition failed with {type(exc).__name__}: {exc}"]
        reason = next((one for one in reasons if one is not None), None)
        if reason is not None:
            self.stop(reason)

    def _set_status(self, task: Task, status: TaskStatus) -> None:
        task.move(status)
        self._notify(self._hooks.listener.on_status, task)

    def _notify(self, method: Callable[..., None], *args: Any) -> None:
        try:
            method(*args)
        except Exception as exc:
            if self._reason is None:
                log.exception("listener.failed")
            self.stop(f"the listener failed with {type(exc).__name__}: {exc}")


def _current() -> asyncio.Task[Any]:
    current = asyncio.current_task()
    assert current is not None, "coroutines run in tasks"
    return current
