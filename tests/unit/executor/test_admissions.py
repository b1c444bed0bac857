"""What is heard is admitted in order, several at once, and no more than there is room for."""

import asyncio

from services.executor.store import Position
from services.executor.store.pubsub import Message
from services.executor.triggers import Admissions
from tests.conftest import eventually

PLACE = Position("m", 0)


class Gatekeeper:
    """Admits a message when it is told to."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.go_on = asyncio.Event()

    async def admit(self, message: Message, _: Position) -> None:
        self.asked.append(message.data)
        await self.go_on.wait()


async def begun(admissions: Admissions, *texts: str) -> None:
    for text in texts:
        await admissions.begin(Message("c", text), PLACE)


async def test_nobody_waits_for_the_admission_before() -> None:
    keeper = Gatekeeper()
    admissions = Admissions(keeper.admit)
    await begun(admissions, "a", "b", "c")
    await asyncio.sleep(0)

    assert keeper.asked == ["a", "b", "c"]
    admissions.cancel()


async def test_no_more_messages_are_under_way_than_there_is_room_for() -> None:
    keeper = Gatekeeper()
    admissions = Admissions(keeper.admit, messages=2)
    beginning = asyncio.create_task(begun(admissions, "a", "b", "c"))

    async def are_two() -> bool:
        return keeper.asked == ["a", "b"]

    await eventually(are_two, "two admissions")
    assert not beginning.done()

    keeper.go_on.set()
    await beginning
    await admissions.all_ended()
    assert keeper.asked == ["a", "b", "c"]


async def test_large_messages_take_more_room_and_one_is_never_too_large() -> None:
    keeper = Gatekeeper()
    admissions = Admissions(keeper.admit, characters=10)
    beginning = asyncio.create_task(begun(admissions, "x" * 50, "y"))

    async def is_one() -> bool:
        return len(keeper.asked) == 1

    await eventually(is_one, "the first admission")
    assert not beginning.done()

    keeper.go_on.set()
    await beginning
    await admissions.all_ended()
    assert keeper.asked == ["x" * 50, "y"]
