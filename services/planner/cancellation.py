"""Cancellation of an execution, from any thread."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from shared.errors import PlanError

T = TypeVar("T")

GRACE_SECONDS = 1.0
"""The time that cancelled work has to clean up."""


class GoalReached(str):
    """A reason to stop that makes the execution a success: its success criteria hold."""

    __slots__ = ()


class PlanCancelledError(PlanError):
    """The work was cancelled before its end; the message is the reason."""


class CancellationToken:
    """Requests the end of executions; can't be reset.

    One token may be passed to several executions.  It may be cancelled from any thread, any number
    of times; the first reason counts.
    """

    def __init__(self) -> None:
        self._reason: str | None = None
        self._lock = threading.Lock()
        self._listeners: set[Callable[[], None]] = set()

    @property
    def is_cancelled(self) -> bool:
        """Whether it has been cancelled."""
        return self._reason is not None

    @property
    def reason(self) -> str | None:
        """The reason; None until it is cancelled."""
        return self._reason

    def cancel(self, reason: str = "cancelled") -> None:
        """Cancel it, and wake all that wait."""
        with self._lock:
            if self._reason is not None:
                return
            self._reason = reason
            listeners = list(self._listeners)
        for listener in listeners:
            listener()

    async def wait(self) -> str:
        """Wait until it is cancelled, and return the reason."""
        loop, asked = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            loop.call_soon_threadsafe(asked.set)

        with self._lock:
            self._listeners.add(wake)
            if self._reason is not None:
                asked.set()
        try:
            await asked.wait()
        finally:
            with self._lock:
                self._listeners.discard(wake)
        assert self._reason is not None, "only cancel() sets the event"
        return self._reason


async def unless_cancelled(token: CancellationToken, work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` returns; cancel it as soon as the token is cancelled.

    Work that ignores its cancellation is abandoned after `GRACE_SECONDS`.

    Raises:
        PlanCancelledError: the token was cancelled; the work's own exceptions are raised as they are.
    """
    doing, wish = asyncio.ensure_future(work), asyncio.ensure_future(token.wait())
    try:
        if not token.is_cancelled:
            await asyncio.wait([doing, wish], return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise PlanCancelledError(token.reason or "cancelled")
        return doing.result()
    finally:
        for task in (doing, wish):
            task.cancel()
        await asyncio.wait([doing, wish], timeout=GRACE_SECONDS)
        if doing.done() and not doing.cancelled():
            doing.exception()  # retrieved, or asyncio would log it
