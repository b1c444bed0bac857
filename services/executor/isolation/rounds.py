"""One timer for all attempts of a pool: one for each would cost more than a warm call, and seldom ring."""

import asyncio

from services.executor.isolation.attempt import NEVER, Attempt


class Rounds:
    """Looks at every attempt when it is due.  Runs on the loop of whoever adds the attempts."""

    def __init__(self) -> None:
        self.attempts: set[Attempt] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._next_at = NEVER

    def add(self, attempt: Attempt) -> None:
        """Look at it when it is due, until it is removed; again when it is due earlier than before."""
        self.attempts.add(attempt)
        if attempt.due_at < self._next_at:
            self._arm(attempt.due_at)

    def remove(self, attempt: Attempt) -> None:
        """Look at it no more.  The timer stays: the next attempt will probably need it."""
        self.attempts.discard(attempt)

    def close(self) -> None:
        """Look at nothing until another attempt is added."""
        if self._timer is not None:
            self._timer.cancel()
        self._next_at = NEVER

    def _arm(self, due_at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next_at = due_at
        self._timer = asyncio.get_running_loop().call_at(due_at, self._look)

    def _look(self) -> None:
        self._next_at = NEVER
        now = asyncio.get_running_loop().time()
        try:
            for attempt in [attempt for attempt in self.attempts if attempt.due_at <= now]:
                attempt.look(now)
        finally:
            next_at = min((attempt.due_at for attempt in self.attempts), default=NEVER)
            if next_at < NEVER:
                self._arm(next_at)
