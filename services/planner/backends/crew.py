"""Who is there to take a plan's runs."""

import asyncio
from collections.abc import Callable

import structlog

from services.executor.store import Store
from shared.errors import StoreError

log = structlog.get_logger()

PLACES_PER_WORKER = 16
"""Eight runs at once, as executors do unless told otherwise, and one that waits behind each."""

NOBODY = "no executor is alive, and the plan waits for one; `fullsend worker` starts one"
SOMEBODY = "an executor is alive; the plan goes on"
AWAY = "Redis is away, and the plan waits for it: {}"
BACK = "Redis is back; the plan goes on"


class Crew:
    """The executors that are alive.

    Args:
        store: on their Redis.
        tell: hears, in a line, that there is none, or that Redis is away, and when that is over.
    """

    def __init__(self, store: Store, tell: Callable[[str], None] | None) -> None:
        self._store = store
        self._tell = tell
        self._count: int | None = None
        self._is_away = False

    @property
    def places(self) -> int:
        """How many runs they can use at once; at least one, for whoever comes."""
        return max(1, (self._count or 0) * PLACES_PER_WORKER)

    async def count(self) -> None:
        """Count them, and say so when there is none, or one again.  Raises `StoreError`."""
        before, self._count = self._count, len(await self._store.workers.alive())
        if not self._count and before != 0:
            self._say(NOBODY)
        elif self._count and before == 0:
            self._say(SOMEBODY)

    async def watch(self, seconds: float, counted: Callable[[], None]) -> None:
        """Count them every so often, until cancelled, and call `counted` each time."""
        while True:
            await asyncio.sleep(seconds)
            try:
                await self.count()
            except StoreError as exc:
                if not self._is_away:
                    self._say(AWAY.format(exc))
                self._is_away = True
                continue
            if self._is_away:
                self._say(BACK)
            self._is_away = False
            counted()

    def _say(self, line: str) -> None:
        log.warning("executors.counted", alive=self._count, note=line)
        if self._tell is not None:
            self._tell(line)
