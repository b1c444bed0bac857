"""What is due is fired at its moment, with all that can be done before done before.

A while ahead of a slot it is read what decides about it, and decided.  At its moment a
single call remains, which compares: what was written otherwise meanwhile is decided again.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import structlog

from services.executor.intake import Intake
from services.executor.scheduling import misfires
from services.executor.store import NORMAL, Decision, Fired, Order, Seen, Store, Upcoming
from shared.backoff import Outage
from shared.documents import iso
from shared.errors import ContractError, StoreError
from shared.messages import RECURRING, Policy, Schedule, State

log = structlog.get_logger()

AHEAD_MS = 250
READ_AT_ONCE = 100
FIRED_AT_ONCE = 10
TOLD_AFTER_SECONDS = 0.003
LONGEST_PAUSE_SECONDS = 1.0
REHEARSED_SECONDS = 0.004
FINE_SECONDS = 0.0011
"""The event loop sleeps for whole milliseconds: what is left then is waited for awake."""

PlanAnew = Callable[[Mapping[str, Schedule | ContractError | None]], Awaitable[None]]


class Clock:
    """Redis' clock, as its answers say: half of what one took had passed when it was given.

    What is asked for when a moment has come reaches Redis only after that, so little is ever early.
    """

    def __init__(self) -> None:
        self._ahead_seconds = 0.0
        self._trip_seconds = math.inf

    def heard(self, now_us: int, asked_at: float) -> None:
        """Redis has just answered that it is `now_us`, asked at `asked_at` on the monotonic clock."""
        heard_at = time.monotonic()
        self._ahead_seconds = now_us / 1_000_000 - (asked_at + heard_at) / 2
        self._trip_seconds = heard_at - asked_at

    def heard_again(self, now_us: int, asked_at: float) -> None:
        """The same a moment later: what took the shorter time is the better answer."""
        if time.monotonic() - asked_at < self._trip_seconds:
            self.heard(now_us, asked_at)

    def seconds_until(self, moment_ms: int) -> float:
        """How long it takes until then."""
        return moment_ms / 1_000 - self._ahead_seconds - time.monotonic()

    async def nearly(self, moment_ms: int, before_seconds: float) -> bool:
        """Sleep until so long before a moment; False when there is no time for it."""
        seconds = self.seconds_until(moment_ms) - before_seconds
        if seconds > 0:
            await asyncio.sleep(seconds)
        return seconds > 0

    async def until(self, moment_ms: int) -> None:
        """Wait for a moment, to the tenth of a millisecond."""
        await self.nearly(moment_ms, FINE_SECONDS)
        while self.seconds_until(moment_ms) > 0:  # noqa: ASYNC110 - nobody would set an event then
            await asyncio.sleep(0)


@dataclass(frozen=True, slots=True)
class Hands:
    """Who takes what is fired, as far as there is room."""

    intake: Intake
    worker: str


class Firing:
    """Fires slots at their moments.

    Args:
        store: where slots are.
        longest_wait_seconds: what others have planned is found after that.
        plan_anew: notes schedules that are written otherwise than they were noted.
        hands: what there is room for is begun at once.
    """

    def __init__(
        self, store: Store, longest_wait_seconds: float, plan_anew: PlanAnew, hands: Hands | None
    ) -> None:
        self._store = store
        self._longest_wait_seconds = longest_wait_seconds
        self._plan_anew = plan_anew
        self._hands = hands
        self._clock = Clock()
        self._untold: list[tuple[Decision, Fired]] = []
        self.woken = asyncio.Event()

    async def run(self) -> None:
        """Fire until cancelled; who has planned something sets `woken`."""
        outage = Outage("cron", LONGEST_PAUSE_SECONDS)
        while True:
            self.woken.clear()
            try:
                next_ms = await self._fire_next()
                outage.ended()
            except StoreError as exc:
                await asyncio.sleep(outage.failed(exc))
                continue
            finally:
                await self._tell()
            # Another worker may have planned something earlier, and ended before it came to it.
            wait_seconds = self._longest_wait_seconds
            if next_ms is not None:
                wait_seconds = min(wait_seconds, self._clock.seconds_until(next_ms - AHEAD_MS))
            await wait(self.woken, wait_seconds)

    async def _fire_next(self) -> int | None:
        """Fire what is due now or in a moment; returns when the next slot is (UTC ms), if that is known."""
        decisions, following_ms = await self._read_ahead()
        for slot_ms, group in groupby(decisions, lambda one: one.slot_ms):
            first, *others = group
            together = [*await self._rehearsed(first), *others]
            for start in range(0, len(together), FIRED_AT_ONCE):
                left: Sequence[Decision] = together[start : start + FIRED_AT_ONCE]
                while left and self._clock.seconds_until(slot_ms) * 1_000 < 2 * AHEAD_MS:
                    await self._clock.until(slot_ms)
                    left = await self._fire(left)
                if left:  # the clock was set back
                    return 0
        if len(decisions) >= READ_AT_ONCE:  # they may have moved while they were read one part after another
            return 0
        known_ms = [following_ms, *(one.next_ms for one in decisions)]
        return min((one for one in known_ms if one is not None), default=None)

    # ahead of the slot

    async def _read_ahead(self) -> tuple[list[Decision], int | None]:
        """What is to become of the slots that come next, earliest first; and the first one after these."""
        decisions: list[Decision] = []
        while True:
            asked_at = time.monotonic()
            ahead = await self._store.slots.ahead(AHEAD_MS, len(decisions), READ_AT_ONCE)
            self._clock.heard(ahead.now_us, asked_at)
            decisions += await self._decided(ahead.slots, ahead.now_us // 1_000)
            is_all = len(ahead.slots) < READ_AT_ONCE
            if is_all or self._clock.seconds_until(decisions[0].slot_ms) <= 0:
                return decisions, ahead.following_ms

    async def _decided(self, slots: Sequence[Upcoming], now_ms: int) -> list[Decision]:
        read = [(one, *misfires.noted(one.experiment_id, one.seen.schedule)) for one in slots]
        others = [one for one, text, _ in read if one.noted not in (text, None)]
        if others:  # they have other slots then; what was read is fired should it be there all the same
            await self._plan_anew({one.experiment_id: one.seen.schedule for one in others})
        return [_decision(one, clock, now_ms) for one, _, clock in read]

    # at its moment

    async def _rehearsed(self, decision: Decision) -> list[Decision]:
        """Have it fired a little too early; what is then to be fired at its moment.

        Nothing comes of it, but on both sides it takes less time to do what has just been done.
        """
        if not await self._clock.nearly(decision.slot_ms, REHEARSED_SECONDS):
            return [decision]
        asked_at = time.monotonic()
        fired = await self._store.slots.fire(decision)
        self._clock.heard_again(fired.now_us, asked_at)
        if fired.found is not None:
            return await self._decided([fired.found], fired.now_us // 1_000)
        if fired.what == "early":
            return [decision]
        self._note(decision, fired)
        return []

    async def _fire(self, decisions: Sequence[Decision]) -> list[Decision]:
        """Fire all of these at once; returns those for which it was too early."""
        if len(decisions) == 1:  # a task of its own would take its time
            answers = [await self._fired(decisions[0])]
        else:
            answers = await asyncio.gather(*map(self._fired, decisions))
        for answer in answers:
            if isinstance(answer, StoreError):
                raise answer
        return [one for one, answer in zip(decisions, answers, strict=True) if answer == "early"]

    async def _fired(self, decision: Decision) -> str | StoreError:
        """What has become of the slot."""
        try:
            fired = await self._call(decision)
            if fired.found is not None:
                [decision] = await self._decided([fired.found], fired.now_us // 1_000)
                # Not compared again: who writes all the time would put it off for ever.
                fired = await self._call(_at_once(decision, fired.found.seen))
        except StoreError as exc:
            return exc
        self._note(decision, fired)
        return fired.what

    def _note(self, decision: Decision, fired: Fired) -> None:
        if fired.what not in ("taken", "early"):
            self._untold.append((decision, fired))

    async def _call(self, decision: Decision) -> Fired:
        asked_at = time.monotonic()
        if self._hands is None:
            fired = await self._store.slots.fire(decision)
        else:
            with self._hands.intake.reserved() as room:
                fired = await self._store.slots.fire(decision, self._hands.worker, room)
            await self._hands.intake.take(fired.claims)
        if fired.what == "early":
            self._clock.heard(fired.now_us, asked_at)
        return fired

    async def _tell(self) -> None:
        """Write of what has become of slots, when the runs have begun: a line takes as long as a begin."""
        if self._untold:
            await asyncio.sleep(TOLD_AFTER_SECONDS)
        untold, self._untold = self._untold, []
        for number, (decision, fired) in enumerate(untold, 1):
            log.info(
                f"slot.{fired.what}",
                experiment_id=decision.experiment_id,
                scheduled_for=iso(decision.slot_ms / 1_000),
                late_ms=fired.late_ms,
                runs=len(decision.orders) if fired.what == "fired" else 0,
            )
            if number % FIRED_AT_ONCE == 0:
                await asyncio.sleep(0)


def _decision(found: Upcoming, clock: misfires.Clock | None, now_ms: int) -> Decision:
    """What is to become of a slot, by what is written."""
    experiment_id, slot_ms, seen = found.experiment_id, found.slot_ms, found.seen
    if clock is None:
        return Decision(experiment_id, slot_ms, None, (), "", seen.mark)
    experiment = seen.stored.experiment
    policy = experiment.policy if experiment else Policy()
    if now_ms <= slot_ms:
        then = misfires.decide_ahead(clock, slot_ms, policy)
    else:
        then = misfires.decide(clock.cron, slot_ms, now_ms, policy)
    # What can't be read is run to be reported.
    is_taken = experiment is None or experiment.state in RECURRING or experiment.state is State.RUNNING
    return Decision(
        experiment_id,
        slot_ms,
        then.next_ms,
        [_order(experiment_id, one, then.serial, policy.priority) for one in then.run_ms] if is_taken else [],
        then.overlap,
        seen.mark,
        then.until_ms,
        # It runs.  By us: then its overlap decides; by somebody else: not ours to run.
        only_if_open=experiment is not None and experiment.state is State.RUNNING,
    )


def _order(experiment_id: str, slot_ms: int, serial: bool, priority: str | None) -> Order:
    at = iso(slot_ms / 1_000)
    return Order(experiment_id, "cron", scheduled_for=at, serial=serial, priority=priority or NORMAL)


def _at_once(decision: Decision, seen: Seen) -> Decision:
    """The same for now, without another look: the state was seen at one moment with the open runs."""
    are_none = decision.only_if_open and not seen.has_open_runs
    return replace(
        decision, orders=() if are_none else decision.orders, mark="", until_ms=None, only_if_open=False
    )


async def wait(event: asyncio.Event, seconds: float) -> None:
    """Until it is set, but no longer than that."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
