"""The progress of a plan: from its registry for any process, and counted live in the one that executes it."""

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
    """The state of a plan.

    `stale`: a session is open, but its process is gone.  `stopped`: cases are left to be run.
    `completed`: all cases have succeeded.  `failed`: all cases have ended, some without success.
    """

    NEW = "new"
    RUNNING = "running"
    STALE = "stale"
    STOPPED = "stopped"
    COMPLETED = "completed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class PlanStatus:
    """The progress of a plan.

    Attributes:
        state: of the plan.
        total: all cases; the next four add up to it.
        done: cases that succeeded.
        failed: cases that ended without success.
        running: cases that run.
        left: cases that are to be run, also cancelled and lost ones.
        stale: cases recorded as running whose process is gone; they are part of `left`.
        rate_per_second: cases ended for each second of the current or last session.
        eta_seconds: until the end of the current session at that rate; None without one.
        session: the current or last session; None before the first.
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
    """Return the progress of the plan with this registry.  Blocks while it reads the registry."""
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


MIN_RATE_SECONDS: Final = 0.5
"""The shortest time over which a rate is computed."""


@dataclass(frozen=True, slots=True)
class ProgressSnapshot:
    """The progress of a session at one moment.

    Attributes:
        total: all cases of the plan.
        done, failed: cases that ended with and without success, including earlier sessions.
        running: cases that run.
        rate_per_second: cases ended for each second of this session; None in its first half second.
        eta_seconds: until the end of this session at that rate; None without a rate.
    """

    total: int
    done: int
    failed: int
    running: int
    rate_per_second: float | None
    eta_seconds: float | None


class Progress:
    """A listener that counts the progress of a session; `snapshot` may be called from any thread.

    Args:
        total: all cases of the plan.
        done, failed: cases that ended with and without success before, and are not run again.
        clock: monotonic, in seconds.
    """

    def __init__(
        self, total: int, done: int = 0, failed: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._total, self._done_before, self._failed_before = total, done, failed
        self._clock, self._began = clock, clock()
        self._ended = self._failed = 0
        self._running: set[str] = set()

    def start(self, done: int, failed: int) -> None:
        """Start the clock; `done` and `failed` cases have ended before and are not run again."""
        self._done_before, self._failed_before, self._began = done, failed, self._clock()

    def on_status(self, task: Task) -> None:
        """Count the cases that run."""
        if task.task_status is TaskStatus.RUNNING:
            self._running.add(task.task_id)
        elif task.task_status in TERMINAL or task.attempt_count:
            self._running.discard(task.task_id)

    def on_result(self, result: TaskResult) -> None:
        """Count the cases that have ended; a cancelled case is still to be run."""
        self._running.discard(result.task_id)
        if result.task_status is TaskStatus.CANCELLED:
            return
        self._failed += result.task_status is not TaskStatus.SUCCEEDED
        self._ended += 1

    def on_event(self, task: Task, event: Event) -> None:
        """Ignore it."""

    def snapshot(self) -> ProgressSnapshot:
        """Return the current progress."""
        seconds, ended = self._clock() - self._began, self._ended
        rate = ended / seconds if ended and seconds >= MIN_RATE_SECONDS else None
        left = self._total - self._done_before - self._failed_before - ended
        return ProgressSnapshot(
            total=self._total,
            done=self._done_before + ended - self._failed,
            failed=self._failed_before + self._failed,
            running=len(self._running),
            rate_per_second=rate,
            eta_seconds=left / rate if rate else None,
        )
