"""Asks an execution to end, from any thread."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from shared.errors import PlanError

T = TypeVar("T")

GRACE_SECONDS = 1.0
"""For work that is cut short to clean up."""


class GoalReached(str):
    """A reason to end that makes the execution a success: it has found what it was to find."""

    __slots__ = ()


class PlanCancelledError(PlanError):
    """Somebody wanted the end before all was done; says why."""


class CancellationToken:
    """One wish to end, which can't be taken back.

    May be given to several executions, and cancelled from any thread, any number of
    times; the first reason counts.
    """

    def __init__(self) -> None:
        self._reason: str | None = None
        self._lock = threading.Lock()
        self._listeners: set[Callable[[], None]] = set()

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody wants the end."""
        return self._reason is not None

    @property
    def reason(self) -> str | None:
        """Why, None while nobody does."""
        return self._reason

    def cancel(self, reason: str = "cancelled") -> None:
        """Ask for the end."""
        with self._lock:
            if self._reason is not None:
                return
            self._reason = reason
            listeners = list(self._listeners)
        for listener in listeners:
            listener()

    async def wait(self) -> str:
        """Wait for the wish; the reason."""
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
        assert self._reason is not None, "it was what woke this up"
        return self._reason


async def unless_cancelled(token: CancellationToken, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns or raises; it is ended as soon as the token is cancelled.

    Work that doesn't let itself be ended goes on alone after a while.

    Raises:
        PlanCancelledError: it was ended.
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
            doing.exception()  # looked at, so that nobody complains
