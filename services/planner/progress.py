"""How far one sitting of a plan is, counted while it goes on."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from services.executor.isolation.calls import Event
from services.planner.tasks import TERMINAL, Task, TaskResult, TaskStatus

TRUSTED_SECONDS: Final = 0.5
"""A rate over less time than that says nothing."""


@dataclass(frozen=True, slots=True)
class Pace:
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

    def begin(self, done: int, failed: int) -> None:
        """The first case begins now; so many are not run again as they succeeded, or ended otherwise."""
        self._done_before, self._failed_before, self._began = done, failed, self._clock()

    def moved(self, task: Task) -> None:
        """A case has begun, or is on its way for another attempt, or has ended."""
        if task.task_status is TaskStatus.RUNNING:
            self._running.add(task.task_id)
        elif task.task_status in TERMINAL or task.attempt_count:
            self._running.discard(task.task_id)

    def ended(self, result: TaskResult) -> None:
        """A case has its result; a cancelled one is still to be run."""
        self._running.discard(result.task_id)
        if result.task_status is TaskStatus.CANCELLED:
            return
        self._failed += result.task_status is not TaskStatus.SUCCEEDED
        self._ended += 1

    def said(self, task: Task, event: Event) -> None:
        """Not counted."""

    def now(self) -> Pace:
        """How far it is."""
        seconds, ended = self._clock() - self._began, self._ended
        rate = ended / seconds if ended and seconds >= TRUSTED_SECONDS else None
        left = self._total - self._done_before - self._failed_before - ended
        return Pace(
            total=self._total,
            done=self._done_before + ended - self._failed,
            failed=self._failed_before + self._failed,
            running=len(self._running),
            rate_per_second=rate,
            eta_seconds=left / rate if rate else None,
        )
