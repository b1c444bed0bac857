"""Cron: due times of schedules become queued runs.  `--test "0 9 * * MON"` explains an expression.

No worker leads.  A sorted set holds the next due time of each schedule; every worker fires what is due,
and the store lets the first one through.
"""

import argparse
import asyncio
import contextlib
import hashlib
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from services.executor import report
from services.executor.intake import Intake
from services.executor.scheduling.cron import explain
from services.executor.scheduling.misfires import Misfires
from services.executor.scheduling.schedule_notes import REFUSED, ScheduleNotes, noted_text, tell
from services.executor.scheduling.schedule_watch import ScheduleWatch
from services.executor.store import Decision, Fired, FoundDue, Position, Store
from shared import keys
from shared.backoff import Outage, until_available
from shared.documents import iso, visible
from shared.errors import ContractError, ScheduleError, StoreError
from shared.schedules import read_schedule_message

log = structlog.get_logger()

AHEAD_MS = 100
"""Due times are read and decided this long before, and a single call is left for the due time."""
STALE_SECONDS = 0.5
"""A decision made ahead isn't used this long after the due time."""
LONGEST_PAUSE_SECONDS = 1.0
FIRED_AT_ONCE = 10


@dataclass(frozen=True, slots=True)
class Hands:
    """The worker that takes runs which it fires, as far as it has free slots."""

    intake: Intake
    worker: str


class CronScheduler:
    """Queues a run for each due time of each schedule.

    Args:
        store: where schedules and due times are.
        check_interval_seconds: how often all schedules are read again, to find those that were changed
            and nobody told of, and how often due times are looked for at least.
        hands: who begins the runs that are fired at once; without it, they wait to be claimed.
        observer: is told how late due times are fired.
        misfires: decides what becomes of a due time.
        read_at_once: how many due times are read and decided at once.
    """

    def __init__(
        self,
        store: Store,
        check_interval_seconds: float,
        hands: Hands | None = None,
        observer: report.Observer | None = None,
        misfires: Misfires = Misfires(),  # noqa: B008 - it can't be changed
        read_at_once: int = 100,
    ) -> None:
        self._store = store
        self._check_interval_seconds = check_interval_seconds
        self._hands = hands
        self._observer = observer or report.Observer()
        self._misfires = misfires
        self._read_at_once = read_at_once
        self._notes = ScheduleNotes(store)
        self._watch = ScheduleWatch(store, self._notes, hands.worker if hands else "")
        self._missed = asyncio.Event()

    async def run(self) -> None:
        """Fire due times until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen(), name="schedule messages")
            tasks.create_task(self._watch.run(), name="schedule keys")
            tasks.create_task(self._read_again(), name="all schedules")
            tasks.create_task(self._fire(), name="cron")

    async def _fire(self) -> None:
        """Fire what is due, again and again."""
        outage = Outage("cron", LONGEST_PAUSE_SECONDS)
        while True:
            self._notes.changed.clear()
            try:
                seconds = await self._fire_due()
                outage.ended()
            except StoreError as exc:
                await asyncio.sleep(outage.failed(exc))
                continue
            # Another worker may have noted an earlier due time, and died before it came.
            await _wait(self._notes.changed, min(seconds, self._check_interval_seconds))

    async def _fire_due(self) -> float:
        """Fire what is due in a moment or since; return the seconds until there is more to do."""
        found = await self._store.due_times.due(AHEAD_MS, self._read_at_once)
        # Redis' clock has gone on while its answer came: by this, nothing is fired early.
        ahead_seconds = found.now_us / 1_000_000 - time.monotonic()
        decisions = await self._decided(found)
        for start in range(0, len(decisions), FIRED_AT_ONCE):
            together = decisions[start : start + FIRED_AT_ONCE]
            wait_seconds = together[-1].due_ms / 1_000 - ahead_seconds - time.monotonic()
            if together[-1].digest and wait_seconds < -STALE_SECONDS:
                return 0.0
            await asyncio.sleep(max(0.0, wait_seconds))
            if not await self._fire_together(together):
                return 0.0
        if len(found.due) >= self._read_at_once:
            return 0.0
        next_ms = [found.following_ms, *(one.next_ms for one in decisions)]
        first_ms = min((one_ms for one_ms in next_ms if one_ms is not None), default=math.inf)
        return (first_ms - AHEAD_MS) / 1_000 - ahead_seconds - time.monotonic()

    async def _decided(self, found: FoundDue) -> list[Decision]:
        """Decide what becomes of due times; a schedule that was changed without a message has others now."""
        decisions: list[Decision] = []
        for one in found.due:
            text, cron = noted_text(one.experiment_id, one.schedule)
            if one.noted in (text, None):
                decisions.append(self._misfires.decide(one, cron, found.now_us // 1_000))
            else:
                await self._notes.note_one(one.experiment_id)
        return decisions

    async def _fire_together(self, decisions: Sequence[Decision]) -> bool:
        """Fire these at the same time; False if some have to be read and decided again."""
        answers = await asyncio.gather(*map(self._fire_one, decisions), return_exceptions=True)
        is_complete = True
        # Logged when all are fired: a line takes as long as the begin of a run.
        for decision, fired in zip(decisions, answers, strict=True):
            if isinstance(fired, BaseException):
                raise fired
            if fired.what in ("changed", "early"):
                is_complete = False
            elif fired.what != "taken":
                if fired.what == "fired":
                    self._observer.fired(fired.late_ms / 1_000)
                log.info(
                    f"due_time.{fired.what}",
                    experiment_id=decision.experiment_id,
                    scheduled_for=iso(decision.due_ms / 1_000),
                    late_ms=fired.late_ms,
                    runs=len(decision.orders) if fired.what == "fired" else 0,
                )
        return is_complete

    async def _fire_one(self, decision: Decision) -> Fired:
        if self._hands is None:
            return await self._store.due_times.fire(decision)
        with self._hands.intake.reserved() as slot:
            fired = await self._store.due_times.fire(decision, self._hands.worker, slot.room)
        await self._hands.intake.take(fired.taken)
        return fired

    async def _listen(self) -> None:
        """Note schedules as they are announced, and as the server tells that they are written."""
        outage = Outage("schedules", LONGEST_PAUSE_SECONDS)
        while True:
            try:
                channels = (keys.SCHEDULES_CHANGED,)
                async with self._store.subscriptions.to(channels, self._watch.patterns) as messages:
                    outage.ended()
                    self._watch.subscribed(messages.hears_keys)
                    self._missed.set()  # messages that were sent before this were not heard
                    async for message in messages:
                        if message.key:
                            self._watch.heard(message.key, message.data)
                        else:
                            await self._take_in(message.data)
            except StoreError as exc:
                await asyncio.sleep(outage.failed(exc))

    async def _take_in(self, data: str) -> None:
        try:
            schedule = read_schedule_message(data)
        except ContractError as exc:
            # Every worker hears the message; a digest of its text tells that it is the same one.
            position = Position("schedules:" + hashlib.sha256(data.encode(errors="replace")).hexdigest(), 0)
            refusal = report.refusal(exc, None)
            if await until_available("refusal", lambda: self._store.triggers.refuse(position, refusal)):
                tell(REFUSED, error=str(exc))
            return
        await until_available("schedule", lambda: self._store.experiments.store_schedule(schedule))
        await until_available("schedule", lambda: self._notes.note_one(schedule.experiment_id))
        self._notes.changed.set()

    async def _read_again(self) -> None:
        """Read all schedules now and then; due times are fired meanwhile, however many there are."""
        outage = Outage("cron", LONGEST_PAUSE_SECONDS)
        while True:
            await _wait(self._missed, self._check_interval_seconds)
            self._missed.clear()
            try:
                await self._notes.read_all()
                outage.ended()
            except StoreError as exc:
                await asyncio.sleep(outage.failed(exc))
                self._missed.set()


async def _wait(event: asyncio.Event, seconds: float) -> None:
    """Wait until the event is set, at most so long."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


# -- on the command line --------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m services.executor.scheduler --test EXPRESSION [--timezone ZONE] [--id EXPERIMENT]`."""
    parser = argparse.ArgumentParser(
        prog="python -m services.executor.scheduler",
        description="Says what a cron expression means and its next due times.",
    )
    parser.add_argument("--test", metavar="EXPRESSION", required=True, help='such as "0 9 * * MON"')
    parser.add_argument("--timezone", metavar="ZONE", help="an IANA name such as Europe/Berlin; default UTC")
    parser.add_argument("--id", metavar="EXPERIMENT", help="the experiment's id, from which an H is hashed")
    parser.add_argument(
        "--count", type=int, default=5, choices=range(1, 1_001), metavar="N", help="how many (default 5)"
    )
    asked = parser.parse_args(argv)
    now_ms = round(time.time() * 1_000)
    try:
        print(visible(explain(asked.test, asked.timezone, now_ms, asked.count, asked.id)))
    except ScheduleError as exc:
        print(visible(f"error: {exc}"), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
