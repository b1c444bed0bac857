"""Cron slots become queued runs; `--test "0 9 * * MON"` explains itself.

No worker leads.  A sorted set holds each schedule's next slot; all workers have
it fired when it is due (`firing.py`), and the store lets the first one through.
"""

import argparse
import asyncio
import hashlib
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import structlog

from services.executor import report
from services.executor.firing import Firing, Hands, wait
from services.executor.notices import FORGOTTEN, PLANNED, REFUSED, Notice, Tally, notice
from services.executor.readiness import Readiness
from services.executor.scheduling.cron import explain
from services.executor.scheduling.misfires import WRONG, noted, noted_as
from services.executor.store import Plan, Position, Store
from shared import keys
from shared.backoff import Outage, until_available
from shared.documents import iso
from shared.errors import ContractError, ScheduleError, StoreError
from shared.messages import Schedule, read_schedule_message

log = structlog.get_logger()

LONGEST_PAUSE_SECONDS = 1.0
PLANNED_AT_ONCE = 200

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
        hands: what there is room for is begun at once; without any, it is left to whoever claims.
        readiness: has processes ready for what is fired.
    """

    def __init__(
        self,
        store: Store,
        check_interval_seconds: float,
        hands: Hands | None = None,
        readiness: Readiness | None = None,
    ) -> None:
        self._store = store
        self._check_interval_seconds = check_interval_seconds
        self._known: dict[str, Known] = {}
        self._tally = Tally(is_first=True)
        self._missed = asyncio.Event()
        self._firing = Firing(store, check_interval_seconds, self._plan_anew, hands)
        self._readiness = readiness

    async def run(self) -> None:
        """Fire slots until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch(), name="schedule messages")
            tasks.create_task(self._read_again(), name="all schedules")
            tasks.create_task(self._firing.run(), name="cron")
            if self._readiness is not None:
                ready = self._readiness.run(self._check_interval_seconds)
                tasks.create_task(ready, name="readiness")

    def _wake(self) -> None:
        """There may be an earlier slot than was known."""
        self._firing.woken.set()
        if self._readiness is not None:
            self._readiness.woken.set()

    # what is written

    async def _watch(self) -> None:
        """Take in schedules as they are announced."""
        outage = Outage("schedules", LONGEST_PAUSE_SECONDS)
        while True:
            try:
                async with self._store.subscriptions.to((keys.SCHEDULES_CHANGED,)) as messages:
                    outage.ended()
                    self._missed.set()  # what was said until now, nobody has heard
                    async for message in messages:
                        await self._take_in(message.data)
            except StoreError as exc:
                await asyncio.sleep(outage.failed(exc))

    async def _take_in(self, data: str) -> None:
        try:
            schedule = read_schedule_message(data)
        except ContractError as exc:
            # Every worker hears this one; the text stands for the message.
            position = Position("schedules:" + hashlib.sha256(data.encode(errors="replace")).hexdigest(), 0)
            refusal = report.refusal(exc, None)
            if await until_available("refusal", lambda: self._store.triggers.refuse(position, refusal)):
                notice(REFUSED, error=str(exc))
            return
        await until_available("schedule", lambda: self._store.experiments.store_schedule(schedule))
        await until_available("schedule", lambda: self._plan_one(schedule.experiment_id))
        self._wake()

    async def _read_again(self) -> None:
        """Read all schedules now and then; slots are fired meanwhile, however many there are."""
        outage = Outage("cron", LONGEST_PAUSE_SECONDS)
        while True:
            await wait(self._missed, self._check_interval_seconds)
            self._missed.clear()
            try:
                await self._plan_all()
                outage.ended()
            except StoreError as exc:
                await asyncio.sleep(outage.failed(exc))
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

    async def _plan_anew(self, schedules: Mapping[str, Schedule | ContractError | None]) -> None:
        """Note what is found to be written otherwise than it was noted."""
        await self._plan({name: one for name, one in schedules.items() if one is not None}, notice)
        for name in [name for name, one in schedules.items() if one is None]:
            await self._plan_one(name)

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
        if known is not None and _is_ahead(known, schedule, now_ms):
            self._known[experiment_id] = known
            return Plan(experiment_id, noted_as(known[0], known[1]), known[2])
        text, clock = noted(experiment_id, schedule)
        if clock is None or isinstance(schedule, ContractError):
            return Plan(experiment_id, text, None)
        next_ms = clock.next_after(now_ms)
        self._known[experiment_id] = (schedule.cron, schedule.timezone, next_ms)
        return Plan(experiment_id, text, next_ms)

    async def _note(self, plans: Sequence[Plan], notice: Notice) -> None:
        changed = set(await self._store.slots.plan(plans))
        for plan in plans:
            if plan.experiment_id in changed:
                await self._tell(plan, notice)
        if changed:
            self._wake()

    async def _tell(self, plan: Plan, notice: Notice) -> None:
        if plan.text.startswith(WRONG):
            error = ScheduleError(plan.text.removeprefix(WRONG))
            await self._store.triggers.announce(report.refusal(error, plan.experiment_id))
            notice(REFUSED, experiment_id=plan.experiment_id, error=str(error))
        else:
            next_at = None if plan.next_ms is None else iso(plan.next_ms / 1_000)
            notice(PLANNED, experiment_id=plan.experiment_id, cron=plan.text, next_at=next_at)


def _is_ahead(known: Known, schedule: Schedule | ContractError, now_ms: int) -> bool:
    """Whether the slot that is known is the schedule's next one, and needn't be computed."""
    if isinstance(schedule, ContractError) or not schedule.enabled:
        return False
    return known[:2] == (schedule.cron, schedule.timezone) and (known[2] is None or known[2] > now_ms)


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
