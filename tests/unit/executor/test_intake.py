"""Which claims a worker has lost: those that somebody else took over, and no others."""

import asyncio

from services.executor.intake import FreeSlot, Intake
from services.executor.store import Claim, Order

CLAIM = Claim("queue", "1-1", "worker", Order("exp", "trigger", timestamp="1-1"))


class SlowQueue:
    """Hands out one claim when it is told to; from `slow` on it says what is held only when it is told to."""

    def __init__(self) -> None:
        self.slow = False
        self.waited_for, self.hand_out = asyncio.Event(), asyncio.Event()
        self.asked, self.answer = asyncio.Event(), asyncio.Event()

    async def create_group(self) -> None:
        """There is one."""

    async def claim(self, worker: str, count: int, wait_ms: int) -> list[Claim]:
        self.waited_for.set()
        await self.hand_out.wait()
        self.hand_out.clear()
        return [CLAIM]

    async def claims_of(self, worker: str) -> list[Claim]:
        if self.slow:
            self.asked.set()
            await self.answer.wait()
        return []


async def test_a_run_that_was_claimed_while_the_question_was_asked_is_not_lost() -> None:
    queue, begun = SlowQueue(), asyncio.Queue[asyncio.Event]()

    async def perform(claim: Claim, cancel: asyncio.Event, free_slot: FreeSlot) -> None:
        begun.put_nowait(cancel)
        await cancel.wait()

    intake = Intake(queue, "worker", 2, perform)  # type: ignore[arg-type]
    working = asyncio.create_task(intake.run())
    await queue.waited_for.wait()
    queue.slow = True
    looking = asyncio.create_task(intake.drop_lost())
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
