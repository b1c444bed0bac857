"""The begin of an attempt, beside which its tool may be called already."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Self, TypeVar

from services.executor.store import Begun, Stored
from shared.errors import StoreError

T = TypeVar("T")

Answer = tuple[Begun, Stored]


class Beginning:
    """A begin that was asked for; whoever wants to know waits, and the tool may be at work meanwhile.

    When the attempt is not to be, `cancel` is set, which ends the tool.  As a context: nothing of
    it goes on afterwards.

    Args:
        asked: the question to the store.
        cancel: what ends the attempt.
    """

    def __init__(self, asked: Coroutine[Any, Any, Answer], cancel: asyncio.Event) -> None:
        self._cancel = cancel
        self._task = asyncio.create_task(self._settle(asked), name="begin")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self._task.done():
            if kind is not None and issubclass(kind, asyncio.CancelledError):
                self._task.cancel()
            await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.exception()  # which was raised where it was waited for, or came too late for that

    async def _settle(self, asked: Coroutine[Any, Any, Answer]) -> Answer:
        begun = None
        try:
            begun, stored = await asked
            return begun, stored
        finally:
            if begun is not Begun.BEGUN:
                self._cancel.set()

    async def answer(self) -> Answer:
        """What became of it, and the experiment as it is stored now; raises what the question raised."""
        return await self._task

    async def then(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask for what only an attempt that has begun may do.

        Raises:
            StoreError: it has not begun, and never will.
        """
        if not self._task.done():
            await asyncio.wait([self._task])
        if self._task.cancelled() or self._task.exception() or self._task.result()[0] is not Begun.BEGUN:
            raise StoreError("the attempt was not to begin")
        return await ask()
