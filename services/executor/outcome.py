"""The outcome of an attempt, and whether another follows.  Faults of a tool become data only here.  Pure."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from enum import StrEnum
from typing import Any, Self, assert_never

from msgspec import Struct, field
from msgspec.structs import replace

from services.executor.isolation.calls import (
    Answer,
    Cancelled,
    Died,
    Exit,
    Raised,
    Returned,
    TimedOut,
    Used,
)
from services.executor.store import Order
from shared.backoff import Backoff, Dice
from shared.documents import cut, cut_middle
from shared.errors import ExperimentArchivedError, ToolTimeoutError
from shared.log import masked_within, unmasked

SUMMARY_MEMBERS = 50
SUMMARY_TEXT = 200
NAME_CHARACTERS = 200
ERROR_CHARACTERS = 16_384
LINE_CHARACTERS = 2_000
TRACEBACK_CHARACTERS = 500_000


class Status(StrEnum):
    """The `status` of a run's record.

    Scripts compare it with `running`, so another status of a run under way begins in `store/lua/`.  A plan
    gives each final one a meaning for its cases (`services/planner/tasks.py`).
    """

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    LOST = "lost"


class Outcome(Struct, frozen=True, dict=True):
    """The outcome of an attempt, in the terms of the contract.

    Attributes:
        artifacts: those that the run has kept so far, by name.
        shown: the texts of large fields as the record has them, by name.
        cached_from: the id of the earlier run whose result this is.
        used: what the attempt used, as far as it was measured.
    """

    status: Status
    result: Any = None
    items: int | None = None
    error: str | None = None
    error_type: str | None = None
    traceback: str | None = None
    partial_results: Any = None
    timeout_seconds: float | None = None
    retryable: bool = False
    retry_after_seconds: float | None = None
    exit: Mapping[str, Any] | None = None
    artifacts: Mapping[str, Any] = field(default_factory=dict)
    shown: Mapping[str, str] = field(default_factory=dict)
    cached_from: str | None = None
    used: Used | None = None

    @functools.cached_property
    def summary(self) -> dict[str, Any]:
        """A short form of the result."""
        return summary(self.result)

    @classmethod
    def of_error(cls, exc: Exception, status: Status = Status.FAILED) -> Self:
        """Return the outcome of an attempt that failed before the tool was called."""
        return cls(status, error=str(exc), error_type=type(exc).__name__)

    @classmethod
    def of_fault(cls, exc: Exception, limit_seconds: float) -> Self:
        """A failure before the call; an import that exceeds its limit is a time-out like any other."""
        if isinstance(exc, ToolTimeoutError):
            return replace(cls.of_error(exc, Status.TIMEOUT), timeout_seconds=limit_seconds)
        return cls.of_error(exc)

    @classmethod
    def archived(cls, order: Order) -> Self:
        """Return the outcome of a run of an archived experiment; one that had begun is stopped on request."""
        error = ExperimentArchivedError(
            f"experiments:{order.experiment_id} is archived; nothing of it is run"
        )
        refused = cls.of_error(error, Status.CANCELLED)
        had_begun = order.attempt > 1 or order.losses > 0
        return replace(refused, error_type="RunCancelledError") if had_begun else refused

    def exhausted(self, attempts: int) -> Self:
        """Return the outcome of the last of `attempts` that all failed."""
        return replace(
            self,
            error=f"gave up after {attempts} attempts, the last with {self.error_type}: {self.error}",
            error_type="ToolRetryExhaustedError",
        )

    def masked(self, mask: Callable[[str], str]) -> Self:
        """Return the outcome with `mask` applied to all its texts, and these cut where they are too long."""
        if mask is unmasked and self.error is None and self.exit is None:
            return self
        return replace(
            self,
            error=self.error and cut_middle(mask(self.error), ERROR_CHARACTERS),
            error_type=self.error_type and cut(mask(self.error_type), NAME_CHARACTERS),
            traceback=self.traceback and cut_middle(mask(self.traceback), TRACEBACK_CHARACTERS),
            result=masked_within(self.result, mask),
            partial_results=masked_within(self.partial_results, mask),
            exit=self.exit and _short_lines(masked_within(self.exit, mask)),
        )

    @property
    def partial_count(self) -> int | None:
        """The number of partial results that were kept; None if there are none."""
        if self.status is Status.COMPLETED or self.partial_results is None:
            return None
        return len(self.partial_results) if isinstance(self.partial_results, list | dict) else 1


CANCELLED = Outcome(Status.CANCELLED, error="the run was cancelled", error_type="RunCancelledError")


def judge(answer: Answer, partials: Sequence[Any], dropped: int = 0) -> Outcome:
    """Return the outcome of an attempt.

    Args:
        answer: what the isolation reports.
        partials: partial results that the tool reported before it ended.
        dropped: the number of further ones that were not kept.
    """
    kept = list(partials) or None
    outcome = _judged(answer, kept)
    if dropped and kept is not None and outcome.partial_results is kept:
        note = f"(the first {len(partials):,} partial results are kept, {dropped:,} more are not)"
        return replace(outcome, error=f"{outcome.error} {note}")
    return outcome


def _judged(answer: Answer, kept: list[Any] | None) -> Outcome:
    used = _used(answer)
    match answer:
        case Returned(value, items, peak_rss_bytes):
            return Outcome(Status.COMPLETED, result=value, items=items, exit=_peak(peak_rss_bytes), used=used)
        case Raised():
            return Outcome(
                Status.FAILED,
                error=answer.message,
                error_type=answer.error_type,
                traceback=answer.traceback or None,
                partial_results=kept if answer.partial_results is None else answer.partial_results,
                retryable=answer.retryable,
                retry_after_seconds=answer.retry_after_seconds,
                exit=_peak(answer.peak_rss_bytes),
                used=used,
            )
        case TimedOut(seconds, exit_):
            error = f"the tool was still running after {seconds:g} s and was ended"
            return Outcome(
                Status.TIMEOUT,
                error=error,
                error_type="ToolTimeoutError",
                partial_results=kept,
                timeout_seconds=seconds,
                exit=_shown(exit_),
                used=used,
            )
        case Died(reason, exit_, innocent):
            return Outcome(
                Status.FAILED,
                error=reason,
                error_type="ToolCrashedError",
                partial_results=kept,
                retryable=innocent,
                exit=_shown(exit_),
                used=used,
            )
        case Cancelled(exit_):
            return replace(CANCELLED, partial_results=kept, exit=_shown(exit_), used=used)
        case _:
            assert_never(answer)


class Retry(Struct, frozen=True):
    """Another attempt follows, `delay_seconds` from now."""

    delay_seconds: float


class GiveUp(Struct, frozen=True):
    """The failure is final.  `exhausted`: it is a transient error that has used up all attempts."""

    exhausted: bool


def retry_or_give_up(
    attempt: int, *, retryable: bool, retry_after_seconds: float | None, backoff: Backoff, dice: Dice
) -> Retry | GiveUp:
    """Return what follows failed attempt number `attempt` (from 1).

    Args:
        retryable: the error is a transient one.
        retry_after_seconds: the pause that the tool asks for; it is not cut short, up to a day.
        dice: chooses the jitter of the pause.
    """
    if not retryable:
        return GiveUp(exhausted=False)
    if backoff.is_exhausted(attempt):
        return GiveUp(exhausted=backoff.max_attempts != 1)
    return Retry(backoff.pause_seconds(attempt, dice, retry_after_seconds))


def summary(result: Any) -> dict[str, Any]:
    """Return a short form of a result: short values unchanged, lists and objects as their lengths."""
    if isinstance(result, list):
        return {"count": len(result)}
    if not isinstance(result, dict):
        return {} if result is None else {"value": _brief(result)}
    short = {
        name: value
        for name, value in result.items()
        if not isinstance(value, dict | list) and value is not None
    }
    lengths = {
        f"{name}_count": len(value) for name, value in result.items() if isinstance(value, dict | list)
    }
    members = {**lengths, **short}
    return {cut(name, SUMMARY_TEXT): _brief(members[name]) for name in list(members)[:SUMMARY_MEMBERS]}


def _brief(value: Any) -> Any:
    if isinstance(value, str) and len(value) > SUMMARY_TEXT:
        return value[: SUMMARY_TEXT - 3] + "..."
    return value


def _short_lines(shown: Mapping[str, Any]) -> dict[str, Any]:
    lines = shown.get("last_lines", ())
    return {**shown, "last_lines": [cut(line, LINE_CHARACTERS) for line in lines]} if lines else dict(shown)


def _used(answer: Answer) -> Used | None:
    """Return what the attempt used; measured memory of a process tree counts more than that of a process."""
    if isinstance(answer, Returned | Raised):
        if answer.used is None or not answer.peak_rss_bytes:
            return answer.used
        return Used(answer.used.cpu_seconds, answer.peak_rss_bytes)
    peak_bytes = answer.exit.peak_rss_bytes
    return Used(None, peak_bytes) if peak_bytes else None


def _peak(rss_bytes: int | None) -> dict[str, Any] | None:
    """Return the peak memory of a run in a process that lives on, if it was measured."""
    return {"peak_rss_bytes": rss_bytes} if rss_bytes else None


def _shown(exit_: Exit) -> dict[str, Any]:
    members = asdict(exit_).items()
    return {name: value for name, value in members if value is not False and value not in (None, "", ())}
