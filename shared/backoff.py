"""Back-off: the pause after a failed attempt, and when to stop.

tenacity's strategies compute the pauses and say when to stop.  The jitter is added here, from a
source of random numbers that the caller passes: tenacity draws from the global `random`, and
with that no test could be exact.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import structlog
import tenacity

from shared.errors import StoreError, StoreUnavailableError

log = structlog.get_logger()
Reply = TypeVar("Reply")

DAY_SECONDS: Final = 24 * 3_600.0

Dice = Callable[[], float]
"""Returns a random number from 0 up to, but not including, 1."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential pauses between the attempts at one thing.

    Args:
        first_seconds: the pause after the first attempt; 0 for no pauses at all.
        longest_seconds: no pause is longer, with its jitter.
        factor: by which each pause is longer than the one before, at least 1.
        jitter: the least and the largest part of a pause that is added to it; (-0.1, 0.1) is +/- 10%.
        max_attempts: how many attempts are made; None for no limit.
    """

    first_seconds: float
    longest_seconds: float = DAY_SECONDS
    factor: float = 2.0
    jitter: tuple[float, float] = (0.0, 0.0)
    max_attempts: int | None = None

    def pause_seconds(
        self, attempt: int, dice: Dice = lambda: 0.5, asked_seconds: float | None = None
    ) -> float:
        """Return the pause between failed attempt number `attempt` (from 1) and the next one.

        Args:
            dice: chooses the jitter within its bounds.
            asked_seconds: the pause is not shorter than this, up to a day, even where that is longer
                than `longest_seconds`: a server that says when to come again is not asked earlier.
        """
        least, most = self.jitter
        seconds = self._wait(_state(attempt)) * (1 + least + (most - least) * dice())
        seconds = min(seconds, self.longest_seconds)
        if asked_seconds is None:
            return seconds
        return max(seconds, min(asked_seconds, DAY_SECONDS))

    def is_exhausted(self, attempt: int) -> bool:
        """Return whether attempt number `attempt` (from 1) was the last one."""
        return self._stop(_state(attempt))

    async def retry(
        self,
        call: Callable[[], Awaitable[Reply]],
        error: type[Exception],
        before_pause: Callable[[BaseException, float], None],
    ) -> Reply:
        """Return what `call` returns, and repeat it when it raises `error`; the last `error` is raised.

        Not for the calls of every run: tenacity's loop adds 30 us to one that succeeds.

        Args:
            before_pause: called with each error and the seconds until the next attempt.
        """

        async def attempt() -> Reply:  # tenacity awaits only what it knows to be a coroutine function
            return await call()

        def before_sleep(state: tenacity.RetryCallState) -> None:
            if state.outcome is not None and (exc := state.outcome.exception()) is not None:
                before_pause(exc, state.upcoming_sleep)

        reply: Reply = await tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(error),
            wait=self._wait,
            stop=self._stop,
            before_sleep=before_sleep,
            reraise=True,
        )(attempt)
        return reply

    @property
    def _wait(self) -> tenacity.wait.wait_base:
        if not self.first_seconds:  # tenacity's own product of 0 and a huge power is the longest pause
            return tenacity.wait_none()
        return tenacity.wait_exponential(self.first_seconds, self.longest_seconds, self.factor)

    @property
    def _stop(self) -> tenacity.stop.stop_base:
        if self.max_attempts is None:
            return tenacity.stop_never
        return tenacity.stop_after_attempt(self.max_attempts)


def _state(attempt: int) -> tenacity.RetryCallState:
    """Return the state that tenacity's strategies are asked with; they look only at the attempt's number."""
    state = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
    state.attempt_number = attempt
    return state


# -- Redis is unavailable ---------------------------------------------------------------

FIRST_PAUSE_SECONDS: Final = 0.1
LONGEST_PAUSE_SECONDS: Final = 3.0
LOG_AGAIN_SECONDS: Final = 10.0
SHUTDOWN_SECONDS: Final = 2.0


class Outage:
    """The times when Redis is unavailable, as seen by one loop that calls it again and again.

    Logs the beginning and the end of each, and every few seconds what the error is, so that the
    log tells what waits for Redis and isn't flooded.

    Args:
        what_for: what waits; it is named in the log.
        longest_pause_seconds: between two calls.
    """

    def __init__(self, what_for: str, longest_pause_seconds: float = LONGEST_PAUSE_SECONDS) -> None:
        self._what_for = what_for
        self._backoff = Backoff(min(FIRST_PAUSE_SECONDS, longest_pause_seconds), longest_pause_seconds)
        self._failures = 0
        self._since = self._logged_at = 0.0
        self._error = ""

    def failed(self, exc: StoreError) -> float:
        """Record a failed call; return the seconds to wait before the next one."""
        now = time.monotonic()
        if not self._failures:
            self._since = now
        if not self._failures or str(exc) != self._error or now - self._logged_at > LOG_AGAIN_SECONDS:
            log.warning("redis.awaited", what_for=self._what_for, error=str(exc))
            self._logged_at, self._error = now, str(exc)
        self._failures += 1
        return self._backoff.pause_seconds(self._failures)

    def ended(self) -> None:
        """Record a call that succeeded; this ends an outage, if there was one."""
        if self._failures:
            seconds = round(time.monotonic() - self._since, 3)
            log.info("redis.returned", what_for=self._what_for, after_seconds=seconds)
            self._failures = 0


async def until_available(what_for: str, call: Callable[[], Awaitable[Reply]]) -> Reply:
    """Return what `call` returns, and repeat it for as long as Redis is unavailable.

    Args:
        what_for: what waits; it is named in the log.
        call: may be made many times, as every transition of the store may be.
    """
    outage: Outage | None = None
    while True:
        try:
            reply = await call()
        except StoreUnavailableError as exc:
            outage = outage or Outage(what_for)
            await asyncio.sleep(outage.failed(exc))
        else:
            if outage is not None:
                outage.ended()
            return reply


@contextlib.asynccontextmanager
async def shutdown_timeout(seconds: float = SHUTDOWN_SECONDS) -> AsyncIterator[None]:
    """Limit the block's calls to Redis, for whoever is about to end.

    Raises:
        StoreUnavailableError: the block took longer.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise StoreUnavailableError(f"Redis doesn't answer within {seconds:g} s") from None
