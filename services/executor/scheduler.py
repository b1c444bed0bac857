"""Cron slots become queued runs; `--test "0 9 * * MON"` explains itself.

No worker leads.  A sorted set holds each schedule's next slot; whoever finds
one due asks the store to fire it, and the store lets the first one through.
"""

import argparse
import asyncio
import contextlib
import hashlib
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import structlog

from services.executor import report
from services.executor.cron import Cron, explain
from services.executor.due import clock_of, decide
from services.executor.notices import FORGOTTEN, PLANNED, REFUSED, Notice, Tally, notice
from services.executor.patience import Absence, insist
from services.executor.store import NORMAL, Order, Plan, Position, Store, Stored
from shared import keys
from shared.errors import ContractError, ScheduleError, StoreError
from shared.messages import RECURRING, Policy, Schedule, State, read_schedule_message
from shared.times import iso

log = structlog.get_logger()

LONGEST_PAUSE_SECONDS = 1.0
PLANNED_AT_ONCE = 200
WRONG = "! "
"""Begins what is noted of a schedule that is refused."""

Known = tuple[str, str | None, int | None]
"""A schedule's expression, its time zone and its next slot (UTC ms).

Plain tuples, which the garbage collector passes over: a hundred thousand objects would hold up the loop.
"""


class CronScheduler:
    """Queues a run for each slot of each schedule.

    Args:
        store: where schedules and slots are.
        check_interval_seconds: how often all schedules are read again, to find
            those that were written without a message.
    """

    def __init__(self, store: Store, check_interval_seconds: float) -> None:
        self._store = store
        self._check_interval_seconds = check_interval_seconds
        self._known: dict[str, Known] = {}
        self._tally = Tally(is_first=True)
        self._missed = asyncio.Event()
        self._woken = asyncio.Event()

    async def run(self) -> None:
        """Fire slots until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch(), name="schedule messages")
            tasks.create_task(self._read_again(), name="all schedules")
            tasks.create_task(self._fire(), name="cron")

    # what is written

    async def _watch(self) -> None:
        """Take in schedules as they are announced."""
        absence = Absence("schedules", LONGEST_PAUSE_SECONDS)
        while True:
            try:
                async with self._store.subscriptions.to((keys.SCHEDULES_CHANGED,)) as messages:
                    absence.over()
                    self._missed.set()  # what was said until now, nobody has heard
                    async for message in messages:
                        await self._take_in(message.data)
            except StoreError as exc:
                await asyncio.sleep(absence.noticed(exc))

    async def _take_in(self, data: str) -> None:
        try:
            schedule = read_schedule_message(data)
        except ContractError as exc:
            # Every worker hears this one; the text stands for the message.
            position = Position("schedules:" + hashlib.sha256(data.encode(errors="replace")).hexdigest(), 0)
            refusal = report.refusal(exc, None)
            if await insist("refusal", lambda: self._store.triggers.refuse(position, refusal)):
                notice(REFUSED, error=str(exc))
            return
        await insist("schedule", lambda: self._store.experiments.store_schedule(schedule))
        await insist("schedule", lambda: self._plan_one(schedule.experiment_id))
        self._woken.set()

    async def _read_again(self) -> None:
        """Read all schedules now and then; slots are fired meanwhile, however many there are."""
        absence = Absence("cron", LONGEST_PAUSE_SECONDS)
        while True:
            await _wait(self._missed, self._check_interval_seconds)
            self._missed.clear()
            try:
                await self._plan_all()
                absence.over()
            except StoreError as exc:
                await asyncio.sleep(absence.noticed(exc))
                self._missed.set()

    async def _plan_all(self) -> None:
        found: set[str] = set()
        refused = 0
        batch: dict[str, Schedule | ContractError] = {}
        async for experiment_id, schedule in self._store.experiments.scan_schedules():
            found.add(experiment_id)
            batch[experiment_id] = schedule
            if len(batch) >= PLANNED_AT_ONCE:
                refused += await self._plan(batch, self._tally.notice)
                batch = {}
        refused += await self._plan(batch, self._tally.notice)
        for experiment_id in set(await self._store.slots.planned()) - found:
            # Gone, unless it was written while the others were read.
            await self._plan_one(experiment_id, self._tally.notice)
        self._tally.sum_up(len(found), refused)
        self._tally = Tally(is_first=False)

    async def _plan_one(self, experiment_id: str, notice: Notice = notice) -> None:
        schedule: Schedule | ContractError | None
        try:
            schedule = await self._store.experiments.schedule(experiment_id)
        except ContractError as exc:
            schedule = exc
        if schedule is None:
            await self._store.slots.drop([experiment_id])
            self._known.pop(experiment_id, None)
            notice(FORGOTTEN, experiment_id=experiment_id)
        else:
            await self._plan({experiment_id: schedule}, notice)

    async def _plan(self, schedules: Mapping[str, Schedule | ContractError], notice: Notice) -> int:
        """Note when each is due next; by the clock of this moment, for reading all of them takes a while.

        Returns:
            How many are refused.
        """
        if not schedules:
            return 0
        now_ms = await self._store.slots.now_ms()
        plans = [self._plan_for(one, schedule, now_ms) for one, schedule in schedules.items()]
        await self._note(plans, notice)
        return sum(plan.text.startswith(WRONG) for plan in plans)

    def _plan_for(self, experiment_id: str, schedule: Schedule | ContractError, now_ms: int) -> Plan:
        known = self._known.pop(experiment_id, None)
        if isinstance(schedule, ContractError):
            return Plan(experiment_id, f"{WRONG}{schedule}", None)
        if not schedule.enabled:
            return Plan(experiment_id, "off", None)
        try:
            next_ms = _next_slot(known, schedule, now_ms)
        except ScheduleError as exc:
            return Plan(experiment_id, f"{WRONG}schedules:{experiment_id}: {exc}", None)
        self._known[experiment_id] = (schedule.cron, schedule.timezone, next_ms)
        return Plan(experiment_id, _text(schedule), next_ms)

    async def _note(self, plans: Sequence[Plan], notice: Notice) -> None:
        changed = set(await self._store.slots.plan(plans))
        for plan in plans:
            if plan.experiment_id in changed:
                await self._tell(plan, notice)
        if changed:
            self._woken.set()

    async def _tell(self, plan: Plan, notice: Notice) -> None:
        if plan.text.startswith(WRONG):
            error = ScheduleError(plan.text.removeprefix(WRONG))
            await self._store.triggers.announce(report.refusal(error, plan.experiment_id))
            notice(REFUSED, experiment_id=plan.experiment_id, error=str(error))
        else:
            next_at = None if plan.next_ms is None else iso(plan.next_ms / 1_000)
            notice(PLANNED, experiment_id=plan.experiment_id, cron=plan.text, next_at=next_at)

    # what is due

    async def _fire(self) -> None:
        absence = Absence("cron", LONGEST_PAUSE_SECONDS)
        while True:
            self._woken.clear()
            try:
                wait_seconds = await self._fire_due()
                absence.over()
            except StoreError as exc:
                await asyncio.sleep(absence.noticed(exc))
                continue
            # Another worker may have planned something earlier, and ended before it came to it.
            await _wait(self._woken, min(wait_seconds, self._check_interval_seconds))

    async def _fire_due(self) -> float:
        """Fire what is due; returns seconds until the next slot."""
        while True:
            now_ms = await self._store.slots.now_ms()
            due = await self._store.slots.due(now_ms)
            if not due:
                break
            stored = await self._store.experiments.read_many([one for one, _ in due])
            for (experiment_id, slot_ms), experiment in zip(due, stored, strict=True):
                await self._fire_slot(experiment_id, slot_ms, now_ms, experiment)
        next_ms = await self._store.slots.next()
        return self._check_interval_seconds if next_ms is None else (next_ms - now_ms) / 1_000

    async def _fire_slot(self, experiment_id: str, slot_ms: int, now_ms: int, stored: Stored) -> None:
        cron = await self._cron_of(experiment_id)
        if cron is None:
            await self._store.slots.fire(experiment_id, slot_ms, None, [], "")
            return
        policy = stored.experiment.policy if stored.experiment else Policy()
        due = decide(cron, slot_ms, now_ms, policy)
        orders = []
        if await self._takes(experiment_id, stored):
            priority, at = policy.priority or NORMAL, [iso(one / 1_000) for one in due.run_ms]
            orders = [
                Order(experiment_id, "cron", scheduled_for=one, serial=due.serial, priority=priority)
                for one in at
            ]
        answer = await self._store.slots.fire(experiment_id, slot_ms, due.next_ms, orders, due.overlap)
        if answer != "taken":
            log.info(
                f"slot.{answer}",
                experiment_id=experiment_id,
                scheduled_for=iso(slot_ms / 1_000),
                late_ms=now_ms - slot_ms,
                runs=len(orders) if answer == "fired" else 0,
            )

    async def _cron_of(self, experiment_id: str) -> Cron | None:
        """The schedule as it is written now; None when it is gone, off or broken.

        By the schedule as it was read some time ago, the slots of one that has
        changed in silence would be computed anew from what it was.
        """
        known = self._known.get(experiment_id)
        if known is None or known[:2] != await self._written(experiment_id):
            await self._plan_one(experiment_id)
            known = self._known.get(experiment_id)
        return None if known is None else clock_of(*known[:2]).cron

    async def _written(self, experiment_id: str) -> tuple[str, str | None] | None:
        try:
            schedule = await self._store.experiments.schedule(experiment_id)
        except ContractError:
            return None
        return (schedule.cron, schedule.timezone) if schedule is not None and schedule.enabled else None

    async def _takes(self, experiment_id: str, stored: Stored) -> bool:
        """Whether the experiment's state lets cron run it; what can't be read is run to be reported."""
        if stored.experiment is not None and stored.experiment.state is State.RUNNING:
            # By us: then its overlap decides; by somebody else: not ours to run.  A run that ends
            # takes both the state and itself away, so both are looked at in one moment.
            stored, has_open_runs = await self._store.experiments.read_with_open_runs(experiment_id)
            if has_open_runs:
                return True
        return stored.experiment is None or stored.experiment.state in RECURRING


def _next_slot(known: Known | None, schedule: Schedule, now_ms: int) -> int | None:
    """Computed only when the one that is known has passed.  Raises `ScheduleError`."""
    is_same = known is not None and known[:2] == (schedule.cron, schedule.timezone)
    if known is not None and is_same and (known[2] is None or known[2] > now_ms):
        return known[2]
    return clock_of(schedule.cron, schedule.timezone).next_after(now_ms)


def _text(schedule: Schedule) -> str:
    """A schedule as it is noted, to be compared."""
    return f"{schedule.cron} {schedule.timezone or ''}".rstrip()


async def _wait(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


# -- on the command line --------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m services.executor.scheduler --test EXPRESSION [--timezone ZONE]`."""
    parser = argparse.ArgumentParser(
        prog="python -m services.executor.scheduler",
        description="Says what a cron expression means and when it runs next.",
    )
    parser.add_argument("--test", metavar="EXPRESSION", required=True, help='such as "0 9 * * MON"')
    parser.add_argument("--timezone", metavar="ZONE", help="an IANA name such as Europe/Berlin; default UTC")
    parser.add_argument(
        "--count", type=int, default=5, choices=range(1, 1_001), metavar="N", help="runs to list (default 5)"
    )
    asked = parser.parse_args(argv)
    now_ms = round(datetime.now(UTC).timestamp() * 1_000)
    try:
        print(explain(asked.test, asked.timezone, now_ms, asked.count))
    except ScheduleError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
