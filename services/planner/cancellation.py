"""Asks an execution to end, from any thread."""

import asyncio
import threading
from collections.abc import Callable


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
