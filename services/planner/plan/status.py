"""How far a plan is, for somebody who looks at it from outside."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from services.executor.isolation.calls import Event
from services.planner.plan.registry import LOST, Registry
from services.planner.plan.session import Session
from services.planner.tasks import TERMINAL, UNSUCCESSFUL, Task, TaskResult, TaskStatus


class PlanState(StrEnum):
    """What is going on with a plan.

    `stale` says that it is noted as running, and that whoever ran it is gone; `stopped`
    that cases are left; `completed` and `failed` that none is, and whether all succeeded.
    """

    NEW = "new"
    RUNNING = "running"
    STALE = "stale"
    STOPPED = "stopped"
    COMPLETED = "completed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class PlanStatus:
    """How far a plan is.

    Attributes:
        state: of the plan.
        total: all cases; the next four sum up to it.
        done: cases that succeeded.
        failed: cases that ended without success.
        running: cases under way, as far as is known.
        left: cases that are to be run, or run again since they were cancelled or lost.
        stale: cases noted as running whose owner is gone; they are among those left.
        rate_per_second: cases ended for each second of the sitting under way, or the last one.
        eta_seconds: to the end of the sitting under way at that rate; None where nothing is.
        sitting: the one under way, or the last one.
    """

    state: PlanState
    total: int
    done: int
    failed: int
    running: int
    left: int
    stale: int
    rate_per_second: float | None
    eta_seconds: float | None
    session: Session | None


def plan_status(registry: Registry) -> PlanStatus:
    """How far the plan is that has this registry."""
    counts, session, now = registry.counts(), registry.last_session(), registry.now()
    goes_on = session is not None and session.is_under_way(now)
    noted = counts.get(TaskStatus.RUNNING, 0)
    running, stale = (noted, 0) if goes_on else (0, noted)
    done, failed = counts.get(TaskStatus.SUCCEEDED, 0), sum(counts.get(one, 0) for one in UNSUCCESSFUL)
    left = counts[TaskStatus.PENDING] + counts.get(TaskStatus.CANCELLED, 0) + counts.get(LOST, 0) + stale
    rate = ended = None
    if session is not None:
        ended = registry.count_ended_in(session.number)
        seconds = (
            (now if goes_on else session.ended_at or session.seen_at) - session.began_at
        ).total_seconds()
        rate = ended / seconds if ended and seconds > 0 else None
    return PlanStatus(
        state=_state(session, goes_on, left, failed),
        total=done + failed + running + left,
        done=done,
        failed=failed,
        running=running,
        left=left,
        stale=stale,
        rate_per_second=rate,
        eta_seconds=max(0, session.cases - ended) / rate if goes_on and session and ended and rate else None,
        session=session,
    )


def _state(session: Session | None, goes_on: bool, left: int, failed: int) -> PlanState:
    if session is None:
        return PlanState.NEW
    if goes_on:
        return PlanState.RUNNING
    if session.ended_at is None:
        return PlanState.STALE
    if left:
        return PlanState.STOPPED
    return PlanState.FAILED if failed else PlanState.COMPLETED


TRUSTED_SECONDS: Final = 0.5
"""A rate over less time than that says nothing."""


@dataclass(frozen=True, slots=True)
class ProgressSnapshot:
    """How far it is at one moment.

    Attributes:
        total: all cases of the plan.
        done, failed: cases that succeeded, and that ended otherwise, also before this sitting.
        running: cases under way.
        rate_per_second: cases ended for each second of this sitting; None until something can be said.
        eta_seconds: to the end of this sitting at that rate.
    """

    total: int
    done: int
    failed: int
    running: int
    rate_per_second: float | None
    eta_seconds: float | None


class Progress:
    """A listener that counts; may be asked from another thread.

    Args:
        total: all cases of the plan.
        done, failed: cases that succeeded, or ended otherwise, before, and are not run again.
        clock: monotonic seconds.
    """

    def __init__(
        self, total: int, done: int = 0, failed: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._total, self._done_before, self._failed_before = total, done, failed
        self._clock, self._began = clock, clock()
        self._ended = self._failed = 0
        self._running: set[str] = set()

    def start(self, done: int, failed: int) -> None:
        """The first case begins now; so many are not run again as they succeeded, or ended otherwise."""
        self._done_before, self._failed_before, self._began = done, failed, self._clock()

    def on_status(self, task: Task) -> None:
        """A case has begun, or is on its way for another attempt, or has ended."""
        if task.task_status is TaskStatus.RUNNING:
            self._running.add(task.task_id)
        elif task.task_status in TERMINAL or task.attempt_count:
            self._running.discard(task.task_id)

    def on_result(self, result: TaskResult) -> None:
        """A case has its result; a cancelled one is still to be run."""
        self._running.discard(result.task_id)
        if result.task_status is TaskStatus.CANCELLED:
            return
        self._failed += result.task_status is not TaskStatus.SUCCEEDED
        self._ended += 1

    def on_event(self, task: Task, event: Event) -> None:
        """Not counted."""

    def snapshot(self) -> ProgressSnapshot:
        """How far it is."""
        seconds, ended = self._clock() - self._began, self._ended
        rate = ended / seconds if ended and seconds >= TRUSTED_SECONDS else None
        left = self._total - self._done_before - self._failed_before - ended
        return ProgressSnapshot(
            total=self._total,
            done=self._done_before + ended - self._failed,
            failed=self._failed_before + self._failed,
            running=len(self._running),
            rate_per_second=rate,
            eta_seconds=left / rate if rate else None,
        )
