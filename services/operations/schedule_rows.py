"""Schedules in words: when each is due next, and what is wrong with it."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from services.executor.scheduling.cron import Cron
from services.executor.store import Store, Stored
from shared.errors import ContractError, ExperimentNotFoundError, ScheduleError
from shared.messages import RECURRING, State
from shared.schedules import Schedule

NO_CRON = "no live worker runs cron, so it is not run; start one with `cron` in SCHEDULE_MODE"
LATE_MS = 5_000
"""A due time is not yet late while a worker may be about to fire it."""


@dataclass(frozen=True, slots=True)
class ScheduleRow:
    """A schedule for display; what is not known is empty.

    `broken` tells a fault from an intention.  `unattended` says that no live worker runs cron.
    """

    experiment_id: str
    state: str
    cron: str = ""
    meaning: str = ""
    timezone: str = ""
    next_local: str = ""
    next_utc: str = ""
    problem: str = ""
    broken: bool = False
    unattended: bool = False

    @property
    def doubts(self) -> str:
        """What keeps the schedule from being run, for people to read."""
        return "; ".join(filter(None, (self.problem, NO_CRON if self.unattended else "")))


async def read_all_schedules(store: Store) -> list[ScheduleRow]:
    """Read every schedule; the one that is due next comes first."""
    now_ms = await store.due_times.now_ms()
    waiting = await store.due_times.all()
    written = [pair async for pair in store.experiments.scan_schedules()]
    stored = await store.experiments.read_many([experiment_id for experiment_id, _ in written])
    is_attended = bool(await store.workers.cron())
    rows = [
        _row(experiment_id, schedule, experiment, now_ms, waiting.get(experiment_id), is_attended=is_attended)
        for (experiment_id, schedule), experiment in zip(written, stored, strict=True)
    ]
    return sorted(rows, key=lambda one: (one.next_utc or "~", one.experiment_id))


def _row(
    experiment_id: str,
    schedule: Schedule | ContractError,
    stored: Stored,
    now_ms: int,
    waiting_ms: int | None,
    *,
    is_attended: bool,
) -> ScheduleRow:
    if isinstance(schedule, ContractError):
        return ScheduleRow(experiment_id, "invalid", problem=str(schedule), broken=True)
    try:
        cron = Cron.parse(schedule.cron, schedule.timezone, experiment_id)
    except ScheduleError as exc:
        return ScheduleRow(experiment_id, "invalid", cron=schedule.cron, problem=str(exc), broken=True)
    next_ms = cron.next_after(now_ms) if schedule.enabled else None
    local, utc = _moments(next_ms, cron.timezone)
    faults = [*_experiment_faults(stored), *_late(waiting_ms if schedule.enabled else None, now_ms)]
    intended = list(_intentions(stored)) if schedule.enabled else []
    if schedule.enabled and next_ms is None:
        intended.append("it is never due again")
    if schedule.enabled and cron.warning is not None:
        intended.append(cron.warning)
    return ScheduleRow(
        experiment_id,
        "active" if schedule.enabled else "off",
        cron.expression,
        cron.describe(),
        cron.timezone,
        local,
        utc,
        problem="; ".join(faults + intended),
        broken=bool(faults),
        unattended=next_ms is not None and not is_attended,
    )


def _experiment_faults(stored: Stored) -> Iterator[str]:
    if stored.experiment is None:
        missing = isinstance(stored.error, ExperimentNotFoundError)
        yield "there is no such experiment" if missing else f"the experiment can't be read: {stored.error}"


def _late(waiting_ms: int | None, now_ms: int) -> Iterator[str]:
    if waiting_ms is not None and waiting_ms < now_ms - LATE_MS:
        missed = datetime.fromtimestamp(waiting_ms / 1_000, UTC)
        yield f"the due time {missed:%Y-%m-%d %H:%M:%S} UTC still waits: no worker runs in cron mode"


def _intentions(stored: Stored) -> Iterator[str]:
    if stored.experiment is not None and (reason := why_not_due(stored.experiment.state)):
        yield reason


def why_not_due(state: State) -> str | None:
    """Why cron does not run an experiment in this state; None if it does."""
    if state in RECURRING or state is State.RUNNING:
        return None
    return f"the experiment is {state}, so cron does not run it"


def _moments(moment_ms: int | None, zone: str) -> tuple[str, str]:
    if moment_ms is None:
        return "", ""
    return local_time(moment_ms, zone), f"{datetime.fromtimestamp(moment_ms / 1_000, UTC):%Y-%m-%d %H:%M:%S}"


def local_time(moment_ms: int, zone: str) -> str:
    """Format a moment (UTC ms) as the clocks of a time zone show it: `Mon 2026-03-02 09:00:00 CET`."""
    local = datetime.fromtimestamp(moment_ms / 1_000, ZoneInfo(zone))
    return f"{local:%a} {local:%Y-%m-%d %H:%M:%S} {local:%Z}"
