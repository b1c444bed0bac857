"""Waits for Redis: what has to be said is said when it is back."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import structlog

from shared.errors import StoreError, StoreUnavailableError

log = structlog.get_logger()
Reply = TypeVar("Reply")

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 3.0
SAID_AGAIN_SECONDS = 10.0
FAREWELL_SECONDS = 2.0


class Absence:
    """The times when Redis is away, as one who asks it again and again sees them.

    Says when it goes and when it is back, and now and then in between, so that
    the log tells what is waited for and isn't flooded.

    Args:
        what_for: named in the log.
        longest_pause_seconds: from try to try.
    """

    def __init__(self, what_for: str, longest_pause_seconds: float = LONGEST_PAUSE_SECONDS) -> None:
        self._what_for = what_for
        self._longest_pause_seconds = longest_pause_seconds
        self._pause_seconds = 0.0
        self._since = self._said_at = 0.0
        self._error = ""

    def noticed(self, exc: StoreError) -> float:
        """Redis did not do what it was asked for; returns the seconds to wait before it is asked again."""
        now = time.monotonic()
        if not self._pause_seconds:
            self._since = now
        if not self._pause_seconds or str(exc) != self._error or now - self._said_at > SAID_AGAIN_SECONDS:
            log.warning("redis.awaited", what_for=self._what_for, error=str(exc))
            self._said_at, self._error = now, str(exc)
        self._pause_seconds = min(
            max(self._pause_seconds * 2, FIRST_PAUSE_SECONDS), self._longest_pause_seconds
        )
        return self._pause_seconds

    def over(self) -> None:
        """Redis has answered."""
        if self._pause_seconds:
            seconds = round(time.monotonic() - self._since, 3)
            log.info("redis.returned", what_for=self._what_for, after_seconds=seconds)
            self._pause_seconds = 0.0


async def insist(what_for: str, ask: Callable[[], Awaitable[Reply]]) -> Reply:
    """The answer of `ask`, however long Redis is away.

    Args:
        what_for: named in the log while it is waited for.
        ask: may be called many times; every transition of the store may be.
    """
    absence: Absence | None = None
    while True:
        try:
            answer = await ask()
        except StoreUnavailableError as exc:
            absence = absence or Absence(what_for)
            await asyncio.sleep(absence.noticed(exc))
        else:
            if absence is not None:
                absence.over()
            return answer


@contextlib.asynccontextmanager
async def farewell() -> AsyncIterator[None]:
    """Who is about to leave asks Redis only briefly; raises `StoreUnavailableError` when it takes longer."""
    try:
        async with asyncio.timeout(FAREWELL_SECONDS):
            yield
    except TimeoutError:
        raise StoreUnavailableError(f"Redis doesn't answer within {FAREWELL_SECONDS:g} s") from None
