"""Cron slots become queued runs; `--test "0 9 * * MON"` explains itself.

No worker leads.  A sorted set holds each schedule's next slot; whoever finds
one due asks the store to fire it, and the store lets the first one through.
"""

import argparse
import asyncio
import hashlib
import math
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime

import structlog

from services.executor import report
from services.executor.cron import Cron, explain
from services.executor.due import decide
from services.executor.patience import Absence, insist
from services.executor.store import NORMAL, Order, Plan, Position, Store, Stored
from shared import keys
from shared.errors import ContractError, ScheduleError, StoreError
from shared.messages import RECURRING, Policy, Schedule, State, read_schedule_message

log = structlog.get_logger()

LONGEST_PAUSE_SECONDS = 1.0
PLANNED_AT_ONCE = 200


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
        self._crons: dict[str, tuple[str, Cron]] = {}
        self._read_again_at = math.inf
        self._woken = asyncio.Event()

    async def run(self) -> None:
        """Fire slots until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch(), name="schedule messages")
            tasks.create_task(self._fire(), name="cron")

    # what is written

    async def _watch(self) -> None:
        """Take in schedules as they are announced."""
        absence = Absence("schedules", LONGEST_PAUSE_SECONDS)
        while True:
            try:
                async with self._store.subscriptions.to((keys.SCHEDULES_CHANGED,)) as messages:
                    absence.over()
                    self._read_again_at = 0.0  # what was said until now, nobody has heard
                    self._woken.set()
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
                log.warning("schedule.refused", error=str(exc))
            return
        await insist("schedule", lambda: self._store.experiments.store_schedule(schedule))
        await insist("schedule", lambda: self._plan_one(schedule.experiment_id))
        self._woken.set()

    async def _plan_all(self) -> None:
        """Read every schedule there is."""
        now_ms = await self._store.slots.now_ms()
        found: set[str] = set()
        batch: list[Plan] = []
        async for experiment_id, schedule in self._store.experiments.scan_schedules():
            found.add(experiment_id)
            batch.append(self._plan_for(experiment_id, schedule, now_ms))
            if len(batch) >= PLANNED_AT_ONCE:
                await self._note(batch)
                batch = []
        await self._note(batch)
        for experiment_id in await self._store.slots.planned():
            if experiment_id not in found:  # gone, unless it was written while the others were read
                await self._plan_one(experiment_id)

    async def _plan_one(self, experiment_id: str) -> None:
        try:
            schedule = await self._store.experiments.schedule(experiment_id)
        except ContractError as exc:
            await self._note([self._plan_for(experiment_id, exc, 0)])
            return
        if schedule is None:
            await self._forget([experiment_id])
            return
        now_ms = await self._store.slots.now_ms()
        await self._note([self._plan_for(experiment_id, schedule, now_ms)])

    def _plan_for(self, experiment_id: str, schedule: Schedule | ContractError, now_ms: int) -> Plan:
        known = self._crons.pop(experiment_id, None)
        if isinstance(schedule, ContractError):
            return Plan(experiment_id, f"! {schedule}", None)
        if not schedule.enabled:
            return Plan(experiment_id, "off", None)
        text = _text(schedule)
        if known is None or known[0] != text:
            try:
                known = (text, Cron.parse(schedule.cron, schedule.timezone))
            except ScheduleError as exc:
                return Plan(experiment_id, f"! schedules:{experiment_id}: {exc}", None)
        self._crons[experiment_id] = known
        return Plan(experiment_id, text, known[1].next_after(now_ms))

    async def _note(self, plans: Sequence[Plan]) -> None:
        changed = set(await self._store.slots.plan(plans))
        for plan in plans:
            if plan.experiment_id not in changed:
                continue
            if plan.text.startswith("! "):
                error = ScheduleError(plan.text.removeprefix("! "))
                await self._store.triggers.announce(report.refusal(error, plan.experiment_id))
                log.warning("schedule.refused", experiment_id=plan.experiment_id, error=str(error))
            else:
                next_at = None if plan.next_ms is None else report.iso(plan.next_ms / 1_000)
                log.info(
                    "schedule.planned", experiment_id=plan.experiment_id, cron=plan.text, next_at=next_at
                )

    async def _forget(self, experiment_ids: Sequence[str]) -> None:
        await self._store.slots.drop(experiment_ids)
        for experiment_id in experiment_ids:
            self._crons.pop(experiment_id, None)
            log.info("schedule.forgotten", experiment_id=experiment_id)

    # what is due

    async def _fire(self) -> None:
        absence = Absence("cron", LONGEST_PAUSE_SECONDS)
        while True:
            self._woken.clear()
            try:
                if time.monotonic() >= self._read_again_at:
                    self._read_again_at = time.monotonic() + self._check_interval_seconds
                    await self._plan_all()
                wait_seconds = await self._fire_due()
                absence.over()
            except StoreError as exc:
                await asyncio.sleep(absence.noticed(exc))
                self._read_again_at = wait_seconds = 0.0
            longest = max(0.0, self._read_again_at - time.monotonic())
            await _wait(self._woken, min(wait_seconds, longest))

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
        overlap = policy.overlap or "skip"
        orders: list[Order] = []
        if await self._takes(experiment_id, stored):
            orders = [
                Order(
                    experiment_id,
                    trigger="cron",
                    scheduled_for=report.iso(one / 1_000),
                    serial=overlap == "queue",
                    priority=policy.priority or NORMAL,
                )
                for one in due.run_ms
            ]
        answer = await self._store.slots.fire(experiment_id, slot_ms, due.next_ms, orders, overlap)
        if answer != "taken":
            log.info(
                f"slot.{answer}",
                experiment_id=experiment_id,
                scheduled_for=report.iso(slot_ms / 1_000),
                late_ms=now_ms - slot_ms,
                runs=len(orders) if answer == "fired" else 0,
            )

    async def _cron_of(self, experiment_id: str) -> Cron | None:
        """The schedule as it is written now; None when it is gone, off or broken.

        By the schedule as it was read some time ago, the slots of one that has
        changed in silence would be computed anew from what it was.
        """
        known = self._crons.get(experiment_id)
        if known is None or known[0] != await self._written(experiment_id):
            await self._plan_one(experiment_id)
            known = self._crons.get(experiment_id)
        return None if known is None else known[1]

    async def _written(self, experiment_id: str) -> str | None:
        try:
            schedule = await self._store.experiments.schedule(experiment_id)
        except ContractError:
            return None
        return _text(schedule) if schedule is not None and schedule.enabled else None

    async def _takes(self, experiment_id: str, stored: Stored) -> bool:
        """Whether the experiment's state lets cron run it; what can't be read is run to be reported."""
        if stored.experiment is None:
            return True
        state = stored.experiment.state
        if state is State.RUNNING:  # by us: then its overlap decides; by somebody else: not ours to run
            return await self._store.slots.has_open_runs(experiment_id)
        return state in RECURRING


def _text(schedule: Schedule) -> str:
    """A schedule as it is noted, to be compared."""
    return f"{schedule.cron} {schedule.timezone or ''}".rstrip()


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return


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
