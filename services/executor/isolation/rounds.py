"""One timer for all attempts of a pool: one for each would cost more than a warm call, and seldom ring."""

import asyncio

from services.executor.isolation.attempt import NEVER, Attempt


class Rounds:
    """Looks at every attempt when it is due.  Runs on the loop of whoever adds the attempts."""

    def __init__(self) -> None:
        self.attempts: set[Attempt] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._arming: asyncio.Handle | None = None
        self._next_at = NEVER

    def add(self, attempt: Attempt) -> None:
        """Look at it when it is due, until it is removed; again when it is due earlier than before."""
        self.attempts.add(attempt)
        if attempt.due_at < self._next_at:
            self._next_at = attempt.due_at
            if self._arming is None:  # not before the call is sent
                self._arming = asyncio.get_running_loop().call_soon(self._arm)

    def remove(self, attempt: Attempt) -> None:
        """Look at it no more.  The timer stays: the next attempt will probably need it."""
        self.attempts.discard(attempt)

    def close(self) -> None:
        """Look at nothing until another attempt is added."""
        for handle in (self._timer, self._arming):
            if handle is not None:
                handle.cancel()
        self._arming = None
        self._next_at = NEVER

    def _arm(self) -> None:
        self._arming = None
        if self._timer is not None:
            self._timer.cancel()
        if self._next_at < NEVER:
            self._timer = asyncio.get_running_loop().call_at(self._next_at, self._look)

    def _look(self) -> None:
        self._next_at = NEVER
        now = asyncio.get_running_loop().time()
        try:
            for attempt in [attempt for attempt in self.attempts if attempt.due_at <= now]:
                attempt.look(now)
        finally:
            self._next_at = min((attempt.due_at for attempt in self.attempts), default=NEVER)
            self._arm()
