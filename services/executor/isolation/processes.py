"""The processes of a pool: starts them, lends them to attempts, takes them back and ends them."""

import asyncio
import threading
from dataclasses import replace
from typing import Any

from services.executor.isolation.attempt import Attempt, Semaphore
from services.executor.isolation.calls import Module
from services.executor.isolation.forkserver import ForkServers, Key
from services.executor.isolation.process import Process, ProcessOptions
from services.executor.isolation.templates import Templates
from services.executor.isolation.workdir import PoolDirectory, Workdir, remove_abandoned

CLOSE_SECONDS = 5.0
MIN_PRUNE_SECONDS = 0.05


class IdleProcesses:
    """Warm processes that serve no run, ordered by last use."""

    def __init__(self) -> None:
        # The one that was used longest ago first.
        self._all: dict[Process, None] = {}
        self._by_key: dict[Key, list[Process]] = {}

    def __contains__(self, process: Process) -> bool:
        return process in self._all

    def add(self, process: Process) -> None:
        """Keep it for the next run of its tool."""
        process.idle_since = asyncio.get_running_loop().time()
        self._all[process] = None
        self._by_key.setdefault(process.key, []).append(process)

    def take(self, key: Key) -> Process | None:
        """The usable one that was used last."""
        while key in self._by_key:
            process = self._by_key[key][-1]
            self.remove(process)
            if process.connection.is_open and not process.retired:
                return process
        return None

    def remove(self, process: Process) -> None:
        """It is used again, or has ended; it may be unknown."""
        if process not in self._all:
            return
        del self._all[process]
        same = self._by_key[process.key]
        same.remove(process)
        if not same:
            del self._by_key[process.key]

    def evict(self, process: Process) -> None:
        """End one of them."""
        self.remove(process)
        process.end(grace_seconds=0)

    def evict_oldest(self) -> None:
        """End the one that was used longest ago, if there is any."""
        if self._all:
            self.evict(next(iter(self._all)))

    def evict_idle_since(self, moment: float) -> None:
        """End those that were last used before then."""
        for process in [process for process in self._all if process.idle_since <= moment]:
            self.evict(process)

    def all(self) -> list[Process]:
        """All of them."""
        return list(self._all)

    def sizes(self) -> dict[str, int]:
        """The number of entries in each collection."""
        return {"idle": len(self._all), "idle_by_key": len(self._by_key)}


class Processes:
    """All processes of a pool.

    Args:
        options: what is the same for each.
        room: the most that may be alive, besides templates and the forks of them that wait for a call.
        max_templates: the most templates.
        idle_seconds: what nobody has used for so long is ended.
        log: what logger to use.
    """

    def __init__(
        self, options: ProcessOptions, room: int, max_templates: int, idle_seconds: float, log: Any
    ) -> None:
        self.directory = PoolDirectory.create()
        self._options = replace(options, directory=self.directory.path)
        self._room = Semaphore(room)
        self._idle_seconds = idle_seconds
        self._log = log
        self._loop = asyncio.get_running_loop()
        self.alive: set[Process] = set()
        self.idle = IdleProcesses()
        self.fork_servers = ForkServers(self._options, log, self._has_processes)
        self.templates = Templates(max_templates, self._create, self._start, log)
        self._pruning: asyncio.TimerHandle | None = None

    async def open(self) -> None:
        """Start the fork server of this interpreter."""
        threading.Thread(target=remove_abandoned, name="remove-abandoned", daemon=True).start()
        await self.fork_servers.open()
        self._prune()

    async def close(self) -> None:
        """End every process and every fork server, and wait until they are gone."""
        if self._pruning is not None:
            self._pruning.cancel()
        self.templates.clear()
        unused = {*self.idle.all(), *self.templates.preforked()}
        for process in list(self.alive):
            process.end(grace_seconds=0 if process in unused else self._options.grace_seconds)
        if self.alive:
            await asyncio.wait([process.ended for process in self.alive], timeout=CLOSE_SECONDS)
        await self.fork_servers.close()
        if not self.directory.remove_if_empty():
            await asyncio.to_thread(self.directory.remove)

    def _has_processes(self, key: Key) -> bool:
        return any(process.key == key for process in self.alive)

    # -- lending --------------------------------------------------------------------------

    async def warm(self, attempt: Attempt, module: Module) -> Process:
        """A process that has this tool loaded: an idle one, or a new one."""
        process = self.idle.take(module.key)
        if process is None:
            return await self._loaded(attempt, module)
        attempt.use(process)
        return process

    async def fresh(self, attempt: Attempt, module: Module) -> Process:
        """A process with a new interpreter."""
        return await self._loaded(attempt, module, fresh=True)

    async def forked(self, attempt: Attempt, module: Module) -> Process:
        """A fork of a process that has imported the tool and never run it."""
        while True:
            await self._detect_sandbox(module)
            template = await self.templates.get(attempt, module)
            if template.unforkable:
                return await self._loaded(attempt, module)
            await self._acquire_room(attempt)
            if self.templates.is_current(template):
                break
            self._room.release()
        try:
            process = self.templates.take_fork(template)
        except BaseException:
            self._room.release()
            raise
        self._lend(attempt, process)
        process.follow_later()
        return process

    async def _loaded(self, attempt: Attempt, module: Module, *, fresh: bool = False) -> Process:
        await self._detect_sandbox(module)
        await self._acquire_room(attempt)
        try:
            process = self._create(module)
        except BaseException:
            self._room.release()
            raise
        self._lend(attempt, process)
        await self._start(process, fresh=fresh)
        return process

    async def _detect_sandbox(self, module: Module) -> None:
        """Find out how a tool can be confined.  In a thread: the first time, that may start a process."""
        if module.sandbox.limits_files:
            await asyncio.to_thread(self._options.detect_sandbox)

    async def _acquire_room(self, attempt: Attempt) -> None:
        if self._room.free == 0:
            self.idle.evict_oldest()
        await attempt.acquire(self._room)

    def _lend(self, attempt: Attempt, process: Process) -> None:
        """The process serves the attempt, and takes up the room that was acquired until it ends."""
        process.has_room = True
        attempt.use(process)

    def _create(self, module: Module, workdir: Workdir | None = None) -> Process:
        if workdir is None:
            workdir = Workdir.within(self.fork_servers.area(module) or self._options.directory)
        process = Process(module, self._options, workdir)
        process.on_retired, process.on_ended = self._retired, self._ended
        self.alive.add(process)
        return process

    async def _start(self, process: Process, *, fresh: bool = False) -> None:
        """Start the process and have it load its tool; end it if that fails."""
        try:
            process.start(await self.fork_servers.for_process(process), fresh=fresh)
            await process.load()
        except BaseException:
            process.end(grace_seconds=0)
            raise

    # -- taking back ----------------------------------------------------------------------

    def give_back(self, process: Process) -> None:
        """The run is over: keep the process for the next one if it is fit."""
        self.fork_servers.sweep_soon()
        if process.retired or process.ended.done() or not process.connection.is_open or not process.loaded:
            process.end(grace_seconds=0)
            return
        self.idle.add(process)

    def dismiss(self, process: Process) -> None:
        """The run is over, and the process exits by itself, because it serves no other."""
        self.fork_servers.sweep_soon()
        self.templates.discard_littered(process)
        if not process.ended.done():
            process.dismiss()

    def refused(self, process: Process) -> None:
        """What the process has imported is out of date, and so is the template that it may be a fork of."""
        process.end(grace_seconds=0)
        self.templates.discard(process.key)

    def _retired(self, process: Process, run_id: str) -> None:
        """The process can't be reset after this run.  If it serves another already, that will be refused."""
        self._log.info(
            "process.retired",
            run_id=run_id,
            tool=process.module.name,
            pid=process.pid,
            reason=process.retired,
        )
        if process in self.idle:
            self.idle.evict(process)

    def _ended(self, process: Process) -> None:
        if process.has_room:
            self._room.release()
        self.alive.discard(process)
        self.idle.remove(process)
        if process.exit.exit_code != 0:
            self.templates.discard_littered(process)
        self.templates.forget(process)

    def _prune(self) -> None:
        """End what has been idle for too long, now and then."""
        too_old = self._loop.time() - self._idle_seconds
        self.idle.evict_idle_since(too_old)
        self.templates.discard_idle_since(too_old)
        self.fork_servers.end_idle(too_old)
        self._pruning = self._loop.call_later(max(MIN_PRUNE_SECONDS, self._idle_seconds / 4), self._prune)

    def sizes(self) -> dict[str, int]:
        """The number of entries in each collection."""
        return {
            "alive": len(self.alive),
            **self.idle.sizes(),
            **self.templates.sizes(),
            **self.fork_servers.sizes(),
        }
