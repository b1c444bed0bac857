"""The begin of an attempt that others wait for, or don't."""

import asyncio

import pytest

from services.executor.beginning import Answer, Beginning
from services.executor.store import Begun, Stored
from shared.errors import StoreError


class Asked:
    """A question whose answer is given by hand."""

    def __init__(self) -> None:
        self._answer: asyncio.Future[Begun] = asyncio.get_running_loop().create_future()
        self.was_cancelled = False

    async def question(self) -> Answer:
        try:
            return await self._answer, Stored.nothing()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise

    def answer(self, begun: Begun) -> None:
        self._answer.set_result(begun)

    def fail(self, exc: Exception) -> None:
        self._answer.set_exception(exc)


async def work() -> str:
    return "done"


async def test_what_needs_the_begin_waits_for_it() -> None:
    asked, cancel = Asked(), asyncio.Event()

    async with Beginning(asked.question(), cancel) as beginning:
        working = asyncio.create_task(beginning.then(work))
        await asyncio.sleep(0)
        was_done = working.done()
        asked.answer(Begun.BEGUN)
        assert await working == "done"

    assert not was_done
    assert not cancel.is_set()


@pytest.mark.parametrize("begun", [one for one in Begun if one is not Begun.BEGUN])
async def test_an_attempt_that_is_not_to_be_is_ended(begun: Begun) -> None:
    asked, cancel = Asked(), asyncio.Event()

    async with Beginning(asked.question(), cancel) as beginning:
        asked.answer(begun)
        await asyncio.wait_for(cancel.wait(), 10)
        with pytest.raises(StoreError, match="not to begin"):
            await beginning.then(work)

        assert (await beginning.answer())[0] is begun


async def test_a_question_that_fails_ends_the_attempt_with_its_reason() -> None:
    asked, cancel = Asked(), asyncio.Event()

    async with Beginning(asked.question(), cancel) as beginning:
        asked.fail(ZeroDivisionError("ours"))
        await asyncio.wait_for(cancel.wait(), 10)
        with pytest.raises(StoreError):
            await beginning.then(work)
        with pytest.raises(ZeroDivisionError):
            await beginning.answer()


async def test_a_fault_beside_it_waits_until_the_begin_is_known() -> None:
    asked = Asked()
    asyncio.get_running_loop().call_later(0.01, asked.answer, Begun.BEGUN)

    with pytest.raises(ZeroDivisionError):
        async with Beginning(asked.question(), asyncio.Event()) as beginning:
            raise ZeroDivisionError

    assert (await beginning.answer())[0] is Begun.BEGUN
    assert not asked.was_cancelled


async def test_nothing_of_it_goes_on_when_the_worker_stops() -> None:
    asked, inside = Asked(), asyncio.Event()

    async def attempt() -> None:
        async with Beginning(asked.question(), asyncio.Event()):
            inside.set()
            await asyncio.Event().wait()

    attempting = asyncio.create_task(attempt())
    await inside.wait()
    await asyncio.sleep(0)
    attempting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attempting

    assert asked.was_cancelled
