"""Processes that no run uses: idle ones, and those that import their tool ahead of the run that wants it."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator

from services.executor.isolation.attempt import Gate
from services.executor.isolation.calls import Module
from services.executor.isolation.process import Process

LATELY_SECONDS = 15.0
"""What was used or made ready since then is not ended to make another one ready."""

BURIAL_SECONDS = 1.0

Key = tuple[str, ...]
Coming = tuple[Process, "asyncio.Task[None]"]


class Unused:
    """Whatever is here is lent to the next run of its tool, and may be ended to make room.

    Args:
        room: how many processes may be alive; who makes one enters before, and its burial leaves.
        register: makes the object for one.
        start: brings it to life with its tool loaded.
    """

    def __init__(
        self,
        room: Gate,
        register: Callable[[Module], Process],
        start: Callable[[Process], Awaitable[None]],
    ) -> None:
        self._room = room
        self._register = register
        self._start = start
        self._loop = asyncio.get_running_loop()
        # In order of last use, the longest ago first.
        self._idle: dict[Process, None] = {}
        self._idle_by_key: dict[Key, list[Process]] = {}
        self._coming: dict[Key, Coming] = {}

    def __contains__(self, process: Process) -> bool:
        """Whether it is idle."""
        return process in self._idle

    def __iter__(self) -> Iterator[Process]:
        """All of them, the one that is missed the least first."""
        yield from self._idle
        for process, _ in self._coming.values():
            yield process

    def add(self, process: Process) -> None:
        """It is idle from now on."""
        process.idle_since = self._loop.time()
        self._idle[process] = None
        self._idle_by_key.setdefault(process.key, []).append(process)

    def take(self, key: Key) -> Process | None:
        """The idle one that was used last and is fit, for a run."""
        while key in self._idle_by_key:
            process = self._idle_by_key[key][-1]
            self.forget(process)
            if process.connection.is_open and not process.retired:
                return process
        return None

    def take_coming(self, key: Key) -> Coming | None:
        """One that imports its tool, for a run: it waits for the start, and bears what that raises."""
        return self._coming.pop(key, None)

    def forget(self, process: Process) -> None:
        """It is used, or ends."""
        if self._idle.pop(process, self) is None:
            same = self._idle_by_key[process.key]
            same.remove(process)
            if not same:
                del self._idle_by_key[process.key]
        elif self._is_coming(process):
            del self._coming[process.key]

    # -- room -----------------------------------------------------------------------------

    def make_room(self) -> None:
        """Have one end for whoever is about to ask for room, if there is none."""
        if self._room.free == 0 and (oldest := next(iter(self), None)) is not None:
            self.evict(oldest)

    def evict(self, process: Process) -> None:
        """Have it end."""
        self.forget(process)
        process.end(grace_seconds=0)

    def evict_idle_since(self, moment: float) -> None:
        """Have those end that have been idle since then."""
        for process in [process for process in self._idle if process.idle_since <= moment]:
            self.evict(process)

    # -- ahead of a run -------------------------------------------------------------------

    async def make_ready(self, module: Module, timeout_seconds: float) -> None:
        """Have one that a run of this tool will find, if there is room besides what was used lately.

        What is ready counts as used now.  No run waits for it: until it is idle, too, it is lent
        and ended like one that is.
        """
        ready = self.take(module.key)
        if ready is not None:
            self.add(ready)
        elif module.key not in self._coming and await self._has_room():
            if module.key in self._coming:  # by now
                self._room.leave()
            else:
                await self._begin(module, timeout_seconds)

    async def _has_room(self) -> bool:
        oldest = next(iter(self._idle), None)
        if self._room.free == 0 and oldest is not None and is_spare(oldest):
            self.evict(oldest)
            await asyncio.wait([oldest.ended], timeout=BURIAL_SECONDS)
        return self._room.try_enter()

    async def _begin(self, module: Module, timeout_seconds: float) -> None:
        try:
            process = self._register(module)
        except BaseException:
            self._room.leave()
            raise
        process.has_room = True
        process.listen_ahead()
        task = asyncio.create_task(self._arrive(process), name=f"ahead {module.name}")
        self._coming[module.key] = process, task
        task.add_done_callback(_overheard)
        try:
            await asyncio.wait([task], timeout=timeout_seconds)
        finally:
            if self._is_coming(process):
                self.evict(process)

    async def _arrive(self, process: Process) -> None:
        await self._start(process)
        if self._is_coming(process):
            del self._coming[process.key]
            self.add(process)

    def _is_coming(self, process: Process) -> bool:
        return process.key in self._coming and self._coming[process.key][0] is process


def is_spare(process: Process) -> bool:
    """Whether it may be ended so that another one is ready: it was not used lately."""
    return process.idle_since <= asyncio.get_running_loop().time() - LATELY_SECONDS


def _overheard(task: "asyncio.Task[None]") -> None:
    """If no run waits, nobody wants to know what went wrong."""
    if not task.cancelled():
        task.exception()
