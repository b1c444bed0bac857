"""Notes the schedules that are written, with the next due time of each, and says what has changed."""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog

from services.executor.scheduling.cron import Cron, cron_of
from services.executor.store import NotedSchedule, Store
from shared.documents import iso
from shared.errors import ContractError, ScheduleError
from shared.messages import experiment_failed
from shared.schedules import Schedule

log = structlog.get_logger()

NOTED_AT_ONCE = 200
COMPUTED_AT_ONCE = 10
NAMED = 10

NOTED = "schedule.noted"
REFUSED = "schedule.refused"
FORGOTTEN = "schedule.forgotten"
_WRONG = "! "
"""Begins what is noted of a schedule that is refused."""

Known = tuple[str, str | None, int | None]
"""A schedule's expression, its time zone and its next due time (UTC ms).

Plain tuples, which the garbage collector passes over: a hundred thousand objects would hold up the loop.
"""

Tell = Callable[..., None]
"""Takes an event of one schedule, and its fields."""


def tell(event: str, **fields: Any) -> None:
    """Write a line about one schedule."""
    (log.warning if event == REFUSED else log.info)(event, **fields)


class ScheduleTally:
    """Names the first `NAMED` schedules of each event in a reading of all, and counts the others.

    In the first reading, only refusals are named: the other schedules are not news.

    Args:
        is_first: whether it is the worker's first one.
    """

    def __init__(self, *, is_first: bool) -> None:
        self._is_first = is_first
        self._counts: Counter[str] = Counter()

    def tell(self, event: str, **fields: Any) -> None:
        """Write the line, unless there are too many of its kind."""
        self._counts[event] += 1
        is_named = event == REFUSED or not self._is_first
        if is_named and self._counts[event] <= NAMED:
            tell(event, **fields)

    def sum_up(self, schedules: int, refused: int) -> None:
        """Write how many there are when all are read, if that has changed.

        Args:
            schedules: how many there are.
            refused: how many of them can't be read, including those that were named before.
        """
        if self._is_first or self._counts:
            log.info(
                "schedules.read",
                schedules=schedules,
                refused=refused,
                changed=self._counts[NOTED] + self._counts[REFUSED],
                forgotten=self._counts[FORGOTTEN],
            )


class ScheduleNotes:
    """Keeps the due times that are noted in line with the schedules that are written.

    Args:
        store: where schedules and due times are.

    Attributes:
        changed: is set when a due time was noted that may be earlier than all others.
        seen: the experiments whose schedules were read here.
        is_read: whether all schedules were read once.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, Known] = {}
        self._tally = ScheduleTally(is_first=True)
        self.changed = asyncio.Event()
        self.seen: set[str] = set()
        self.is_read = False

    async def read_all(self) -> None:
        """Read and note all schedules there are, and drop those that are gone."""
        found: set[str] = set()
        refused = 0
        batch: dict[str, Schedule | ContractError] = {}
        async for experiment_id, schedule in self._store.experiments.scan_schedules():
            found.add(experiment_id)
            batch[experiment_id] = schedule
            if len(batch) >= NOTED_AT_ONCE:
                refused += await self._note(batch, self._tally.tell)
                batch = {}
        refused += await self._note(batch, self._tally.tell)
        for experiment_id in set(await self._store.due_times.noted()) - found:
            # It is gone, unless it was written while the others were read.
            await self.note_one(experiment_id, self._tally.tell)
        self._tally.sum_up(len(found), refused)
        self._tally = ScheduleTally(is_first=False)
        self.is_read = True

    async def note_these(self, experiment_ids: Sequence[str]) -> None:
        """Note the schedules of some experiments as they are now."""
        written = await self._store.experiments.schedules(experiment_ids)
        tally = ScheduleTally(is_first=False)
        refused = await self._note(written, tally.tell)
        for experiment_id in experiment_ids:
            if experiment_id not in written:
                await self.note_one(experiment_id, tally.tell)
        if len(experiment_ids) > NAMED:
            tally.sum_up(len(written), refused)

    async def note_one(self, experiment_id: str, tell: Tell = tell) -> None:
        """Note the schedule of one experiment as it is now, or that it is gone."""
        schedule: Schedule | ContractError | None
        try:
            schedule = await self._store.experiments.schedule(experiment_id)
        except ContractError as exc:
            schedule = exc
        if schedule is None:
            await self._store.due_times.drop([experiment_id])
            self._known.pop(experiment_id, None)
            self.seen.discard(experiment_id)
            tell(FORGOTTEN, experiment_id=experiment_id)
        else:
            await self._note({experiment_id: schedule}, tell)

    async def _note(self, schedules: Mapping[str, Schedule | ContractError], tell: Tell) -> int:
        """Note when each is due next, by the clock of this moment: reading all of them takes a while.

        Returns:
            How many are refused.
        """
        if not schedules:
            return 0
        self.seen.update(schedules)
        now_ms = await self._store.due_times.now_ms()
        noted = []
        for number, (experiment_id, schedule) in enumerate(schedules.items()):
            if number % COMPUTED_AT_ONCE == 0:  # due times are fired in between
                await asyncio.sleep(0)
            noted.append(self._next(experiment_id, schedule, now_ms))
        changed = set(await self._store.due_times.note(noted))
        for one in noted:
            if one.experiment_id in changed:
                await self._tell(one, tell)
        if changed:
            self.changed.set()
        return sum(one.text.startswith(_WRONG) for one in noted)

    def _next(self, experiment_id: str, schedule: Schedule | ContractError, now_ms: int) -> NotedSchedule:
        known = self._known.pop(experiment_id, None)
        if known is not None and _is_ahead(known, schedule, now_ms):
            self._known[experiment_id] = known
            return NotedSchedule(experiment_id, _text(known[0], known[1]), known[2])
        text, cron = noted_text(experiment_id, schedule)
        if cron is None or isinstance(schedule, ContractError):
            return NotedSchedule(experiment_id, text, None)
        next_ms = cron.next_after(now_ms)
        self._known[experiment_id] = (schedule.cron, schedule.timezone, next_ms)
        return NotedSchedule(experiment_id, text, next_ms)

    async def _tell(self, one: NotedSchedule, tell: Tell) -> None:
        if one.text.startswith(_WRONG):
            error = one.text.removeprefix(_WRONG)
            refusal = experiment_failed(one.experiment_id, None, error, ScheduleError.__name__)
            await self._store.triggers.announce(refusal)
            tell(REFUSED, experiment_id=one.experiment_id, error=error)
        else:
            next_at = None if one.next_ms is None else iso(one.next_ms / 1_000)
            tell(NOTED, experiment_id=one.experiment_id, cron=one.text, next_at=next_at)


def noted_text(experiment_id: str, schedule: Schedule | ContractError | None) -> tuple[str, Cron | None]:
    """A schedule's text as it is noted, to be compared, and the schedule itself if it has due times."""
    if schedule is None:
        return "", None
    if isinstance(schedule, ContractError):
        return f"{_WRONG}{schedule}", None
    if not schedule.enabled:
        return "off", None
    try:
        cron = cron_of(schedule.cron, schedule.timezone, experiment_id)
    except ScheduleError as exc:
        return f"{_WRONG}schedules:{experiment_id}: {exc}", None
    return _text(schedule.cron, schedule.timezone), cron


def _text(expression: str, timezone: str | None) -> str:
    return f"{expression} {timezone or ''}".rstrip()


def _is_ahead(known: Known, schedule: Schedule | ContractError, now_ms: int) -> bool:
    """Whether the due time that is known is the schedule's next one, and needn't be computed."""
    if isinstance(schedule, ContractError) or not schedule.enabled:
        return False
    return known[:2] == (schedule.cron, schedule.timezone) and (known[2] is None or known[2] > now_ms)
