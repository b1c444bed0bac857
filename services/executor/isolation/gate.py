"""Lets a limited number in at a time, first come, first served."""

import asyncio
from collections import deque


class Gate:
    """Like a semaphore whose queue can be looked at and whose waiters can be sent away."""

    def __init__(self, places: int) -> None:
        self.free = places
        self._queue: deque[asyncio.Future[None]] = deque()

    def try_enter(self) -> bool:
        """Take a place if there is one and nobody is waiting for it."""
        if self.free > 0:
            self.free -= 1
            return True
        return False

    def queue(self) -> asyncio.Future[None]:
        """A future that is done when the caller has been given a place."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        return turn

    def leave(self) -> None:
        """Give the place to whoever waits the longest, or keep it for the next."""
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.free += 1
