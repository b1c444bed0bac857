"""Waits for Redis: what has to be said is said when it is back."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from shared.errors import StoreUnavailableError

log = structlog.get_logger()
Reply = TypeVar("Reply")

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 3.0


async def insist(what_for: str, ask: Callable[[], Awaitable[Reply]]) -> Reply:
    """The answer of `ask`, however long Redis is away.

    Args:
        what_for: named in the log while it is waited for.
        ask: may be called many times; every transition of the store may be.
    """
    pause = FIRST_PAUSE_SECONDS
    waited = False
    while True:
        try:
            answer = await ask()
        except StoreUnavailableError as exc:
            log.warning("redis.awaited", what_for=what_for, error=str(exc), next_try_seconds=pause)
        else:
            if waited:
                log.info("redis.returned", what_for=what_for)
            return answer
        waited = True
        await asyncio.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
