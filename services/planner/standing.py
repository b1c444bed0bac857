"""How far a plan is, for somebody who looks at it from outside."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from services.planner.ownership import Sitting
from services.planner.registry import LOST, Registry
from services.planner.tasks import TaskStatus

UNSUCCESSFUL: Final = (TaskStatus.FAILED, TaskStatus.TIMEOUT, TaskStatus.ERROR)


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
class Standing:
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
    sitting: Sitting | None


def standing(registry: Registry) -> Standing:
    """How far the plan is that has this registry."""
    counts, sitting, now = registry.counts(), registry.last_sitting(), registry.now()
    goes_on = sitting is not None and sitting.is_under_way(now)
    noted = counts.get(TaskStatus.RUNNING, 0)
    running, stale = (noted, 0) if goes_on else (0, noted)
    done, failed = counts.get(TaskStatus.SUCCEEDED, 0), sum(counts.get(one, 0) for one in UNSUCCESSFUL)
    left = counts[TaskStatus.PENDING] + counts.get(TaskStatus.CANCELLED, 0) + counts.get(LOST, 0) + stale
    rate = ended = None
    if sitting is not None:
        ended = registry.ended_in(sitting.number)
        seconds = (
            (now if goes_on else sitting.ended_at or sitting.seen_at) - sitting.began_at
        ).total_seconds()
        rate = ended / seconds if ended and seconds > 0 else None
    return Standing(
        state=_state(sitting, goes_on, left, failed),
        total=done + failed + running + left,
        done=done,
        failed=failed,
        running=running,
        left=left,
        stale=stale,
        rate_per_second=rate,
        eta_seconds=max(0, sitting.cases - ended) / rate if goes_on and sitting and ended and rate else None,
        sitting=sitting,
    )


def _state(sitting: Sitting | None, goes_on: bool, left: int, failed: int) -> PlanState:
    if sitting is None:
        return PlanState.NEW
    if goes_on:
        return PlanState.RUNNING
    if sitting.ended_at is None:
        return PlanState.STALE
    if left:
        return PlanState.STOPPED
    return PlanState.FAILED if failed else PlanState.COMPLETED
