"""Which slot comes next, and what becomes of one that is due and of those that were missed.  Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from services.executor.scheduling.cron import Cron
from shared.errors import ContractError, ScheduleError
from shared.messages import Policy, Schedule

CAUGHT_UP_AT_ONCE = 1_000
ON_TIME_MS = 1_000
REMEMBERED = 4_096
WRONG = "! "
"""Begins what is noted of a schedule that is refused."""


@dataclass(slots=True)
class Clock:
    """A schedule's slots; equal schedules share it, so that each slot is looked for once."""

    cron: Cron
    _after_ms: float = math.inf
    _next_ms: int | None = None

    def next_after(self, now_ms: int) -> int | None:
        """The first slot after `now_ms`; None when there is none to come."""
        is_later = self._next_ms is None or now_ms < self._next_ms
        if not (self._after_ms <= now_ms and is_later):
            self._after_ms, self._next_ms = now_ms, self.cron.next_after(now_ms)
        return self._next_ms


@lru_cache(maxsize=REMEMBERED)
def clock_of(expression: str, timezone: str | None) -> Clock:
    """The clock of a schedule.  Raises `ScheduleError`."""
    return Clock(Cron.parse(expression, timezone))


def noted(experiment_id: str, schedule: Schedule | ContractError | None) -> tuple[str, Clock | None]:
    """A schedule as it is noted, to be compared, and its slots, if it has any."""
    if schedule is None:
        return "", None
    if isinstance(schedule, ContractError):
        return f"{WRONG}{schedule}", None
    if not schedule.enabled:
        return "off", None
    try:
        clock = clock_of(schedule.cron, schedule.timezone)
    except ScheduleError as exc:
        return f"{WRONG}schedules:{experiment_id}: {exc}", None
    return noted_as(schedule.cron, schedule.timezone), clock


def noted_as(expression: str, timezone: str | None) -> str:
    """A schedule that has slots, as it is noted."""
    return f"{expression} {timezone or ''}".rstrip()


@dataclass(frozen=True, slots=True)
class Due:
    """What to do about a slot that is due: which missed slots to run, and where to go on.

    `overlap` is what they do while a run is open.  `serial` runs wait for each other.
    Decided ahead of the slot, it holds until `until_ms`.
    """

    run_ms: Sequence[int]
    next_ms: int | None
    overlap: str = "skip"
    serial: bool = False
    until_ms: int | None = None


def decide_ahead(clock: Clock, slot_ms: int, policy: Policy) -> Due:
    """What `decide` will say of a slot when it is due, and how long it will say so."""
    next_ms = clock.next_after(slot_ms)
    until_ms = slot_ms + min(ON_TIME_MS, _grace_ms(policy, ON_TIME_MS))
    if next_ms is not None:
        until_ms = min(until_ms, next_ms - 1)
    return _overlapping([slot_ms], next_ms, slot_ms, policy, until_ms)


def decide(cron: Cron, slot_ms: int, now_ms: int, policy: Policy) -> Due:
    """Which of the slots from `slot_ms` to `now_ms` become runs.

    `grace_seconds` drops what is later than that.  Of the rest, `catch_up` takes
    the `latest` (default), `all`, or only what is on time (`none`).  Where all are
    wanted, no missed slot is skipped for the one before it: they run one after
    the other.
    """
    run_ms, next_ms = _taken(cron, slot_ms, now_ms, policy)
    return _overlapping(run_ms, next_ms, now_ms, policy)


def _overlapping(
    run_ms: Sequence[int], next_ms: int | None, now_ms: int, policy: Policy, until_ms: int | None = None
) -> Due:
    overlap = policy.overlap or "skip"
    if overlap != "skip" or policy.catch_up != "all":
        return Due(run_ms, next_ms, overlap, overlap == "queue", until_ms)
    are_late = bool(run_ms) and now_ms - run_ms[0] > ON_TIME_MS
    # Those on time are serial as well: one may still be open when the next ones are missed.
    return Due(run_ms, next_ms, "queue" if are_late else "skip", True, until_ms)


def _taken(cron: Cron, slot_ms: int, now_ms: int, policy: Policy) -> tuple[list[int], int | None]:
    """The slots to run, and where to go on."""
    oldest_ms = max(slot_ms, now_ms - _grace_ms(policy, now_ms))
    missed = [slot_ms] if slot_ms == oldest_ms else []
    missed += cron.due_times_between(max(slot_ms, oldest_ms - 1), now_ms, CAUGHT_UP_AT_ONCE)
    following = cron.next_after(now_ms)
    if policy.catch_up == "all":
        is_portion = len(missed) >= CAUGHT_UP_AT_ONCE
        return missed, cron.next_after(missed[-1]) if is_portion else following
    if len(missed) >= CAUGHT_UP_AT_ONCE:
        latest = cron.previous_at_or_before(now_ms)
        missed = [slot_ms if latest is None else latest]
    return missed[-1:], following


def _grace_ms(policy: Policy, now_ms: int) -> int:
    """How late a slot may be."""
    grace_ms = now_ms if policy.grace_seconds is None else math.floor(policy.grace_seconds * 1_000)
    return min(ON_TIME_MS, grace_ms) if policy.catch_up == "none" else grace_ms
