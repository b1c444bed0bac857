"""What a worker begins, and which claims it has lost: those that somebody else took over, and no others."""

import asyncio
from collections.abc import Sequence

import pytest

from services.executor.intake import Intake
from services.executor.runner import Running
from services.executor.store import Claim, Order, Taken
from tests.service.conftest import NoTools

CLAIM = Claim("queue", "1-1", "worker", Order("exp", "trigger", timestamp="1-1"))


async def never(running: Running) -> None:
    """It goes on until it is cancelled."""
    await running.cancel.wait()


async def no_data_is_lost(claim: Claim) -> bool:
    """Redis has all its data."""
    return False


class SlowQueue:
    """Hands out one claim when it is told to; from `slow` on it says what is held only when it is told to.

    It is found `empty` first, and then waited for, or it hands out nothing until `hand_out` is set.
    """

    def __init__(self) -> None:
        self.slow = self.empty = False
        self.waited_for, self.hand_out = asyncio.Event(), asyncio.Event()
        self.asked, self.answer = asyncio.Event(), asyncio.Event()

    async def create_group(self) -> None:
        """There is one."""

    async def claim(self, worker: str, room: int, missing: Sequence[str], failed: Sequence[str]) -> Taken:
        if self.empty:
            self.empty = False
            return Taken()
        self.waited_for.set()
        await self.hand_out.wait()
        self.hand_out.clear()
        return Taken([CLAIM])

    async def wait(self, worker: str, seconds: float) -> bool:
        self.waited_for.set()
        await self.hand_out.wait()
        return True

    async def ring(self) -> None:
        """Nobody else waits."""

    async def claims_of(self, worker: str) -> list[Claim]:
        if self.slow:
            self.asked.set()
            await self.answer.wait()
        return []


async def test_a_run_that_was_claimed_while_the_question_was_asked_is_not_lost() -> None:
    queue, begun = SlowQueue(), asyncio.Queue[asyncio.Event]()

    async def perform(running: Running) -> None:
        begun.put_nowait(running.cancel)
        await running.cancel.wait()

    intake = Intake(queue, "worker", 2, NoTools(), perform)  # type: ignore[arg-type]
    working = asyncio.create_task(intake.run())
    await queue.waited_for.wait()
    queue.slow = True
    looking = asyncio.create_task(intake.drop_lost(no_data_is_lost))
    await queue.asked.wait()
    queue.hand_out.set()
    cancel = await begun.get()
    queue.answer.set()
    await looking
    is_lost = cancel.is_set()
    working.cancel()
    await asyncio.wait([working])
    cancel.set()

    assert not is_lost


@pytest.mark.parametrize("empty", [True, False])
async def test_a_slot_is_spared_only_while_no_run_waits_for_it(*, empty: bool) -> None:
    queue = SlowQueue()
    queue.empty = empty
    intake = Intake(queue, "worker", 3, NoTools(), never)  # type: ignore[arg-type]
    working = asyncio.create_task(intake.run())
    await queue.waited_for.wait()

    with intake.reserved() as slot:
        assert (slot.room, intake.room) == (int(empty), 3 - slot.room)
    assert intake.room == 3
    working.cancel()


async def test_each_free_slot_is_reserved_once() -> None:
    queue = SlowQueue()
    queue.empty = True
    intake = Intake(queue, "worker", 2, NoTools(), never)  # type: ignore[arg-type]
    working = asyncio.create_task(intake.run())
    await queue.waited_for.wait()

    with intake.reserved() as first, intake.reserved() as second, intake.reserved() as third:
        assert (first.room, second.room, third.room, intake.room) == (1, 1, 0, 0)
        for one in (first, first, third):
            one.release()
        assert (first.room, second.room, intake.room) == (0, 1, 1)
    assert intake.room == 2
    working.cancel()


async def test_after_a_wait_a_slot_is_spared_only_when_the_queue_was_found_empty_again() -> None:
    queue = SlowQueue()
    queue.empty = True
    intake = Intake(queue, "worker", 3, NoTools(), never)  # type: ignore[arg-type]
    working = asyncio.create_task(intake.run())
    await queue.waited_for.wait()
    queue.waited_for.clear()
    queue.hand_out.set()
    await queue.waited_for.wait()

    with intake.reserved() as slot:
        assert slot.room == 0
    working.cancel()
    for one in intake.running:
        one.cancel.set()


async def test_a_claim_that_was_found_meanwhile_is_begun_once() -> None:
    intake = Intake(SlowQueue(), "worker", 3, NoTools(), never)  # type: ignore[arg-type]
    await intake.take(Taken([CLAIM]))
    await intake.take(Taken([CLAIM]))

    assert len(intake.running) == 1
    intake.running[0].cancel.set()
