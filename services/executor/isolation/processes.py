"""Keeps the processes between runs: starts them, lends them out, takes them back, gives them up."""

import asyncio
import threading
from dataclasses import replace
from typing import Any
from weakref import WeakValueDictionary

from services.executor.isolation import sandbox
from services.executor.isolation.attempt import Attempt, Gate
from services.executor.isolation.calls import Level, Module
from services.executor.isolation.forkservers import Key, Servers
from services.executor.isolation.ground import Ground, clear
from services.executor.isolation.process import Process
from services.executor.isolation.sandbox import Sandbox
from services.executor.isolation.templates import Standbys
from services.executor.isolation.terms import Terms
from services.executor.isolation.unused import Unused, is_spare
from services.executor.isolation.workdir import Place


async def _look_around(module: Module) -> None:
    """Find out by what means a tool can be confined here; the first time, that may start a process."""
    if module.sandbox is not Sandbox.OFF:
        await asyncio.to_thread(sandbox.detect)


class Stable:
    """All processes of a pool.

    `room` bounds how many may be alive, apart from templates, of which there are
    `max_templates`, and the forks of each that stand by, a few of them at most.
    """

    def __init__(self, terms: Terms, room: int, max_templates: int, idle_seconds: float, log: Any) -> None:
        self._ground = Ground.claim()
        self._terms = replace(terms, directory=self._ground.path)
        self._room = Gate(room)
        self._max_templates = max_templates
        self._idle_seconds = idle_seconds
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._alive: set[Process] = set()
        self._servers = Servers(self._terms, log, self._has_processes)
        self._unused = Unused(self._room, self._register, self._start)
        # In order of last use, the longest ago first.
        self._templates: dict[Key, Process] = {}
        # Those behind it, and who waits for them, keep a gate.
        self._template_gates: WeakValueDictionary[Key, Gate] = WeakValueDictionary()
        self._standbys = Standbys(lambda template: self._register(template.module, template.place.for_fork()))
        self._discarded: set[Process] = set()
        self._pruning: asyncio.TimerHandle | None = None

    async def open(self) -> None:
        """Start the fork server of this interpreter."""
        threading.Thread(target=clear, name="clear", daemon=True).start()
        await self._servers.open()
        self._prune()

    async def close(self) -> None:
        """End every process and every fork server, and wait until they are gone."""
        if self._pruning is not None:
            self._pruning.cancel()
        self._templates.clear()
        unused = {*self._unused, *self._standbys.everywhere()}
        for process in list(self._alive):
            process.end(grace_seconds=0 if process in unused else self._terms.grace_seconds)
        if self._alive:
            await asyncio.wait([process.ended for process in self._alive], timeout=5.0)
        await self._servers.close()
        if not self._ground.give_up_empty():
            await asyncio.to_thread(self._ground.give_up)

    def _has_processes(self, key: Key) -> bool:
        return any(process.key == key for process in self._alive)

    # -- lending --------------------------------------------------------------------------

    async def warm(self, attempt: Attempt, module: Module) -> Process:
        """A process that has this tool loaded: one that is idle, one that is coming, or a new one."""
        process = self._unused.take(module.key)
        if process is not None:
            attempt.occupy(process)
            return process
        coming = self._unused.take_coming(module.key)
        if coming is None:
            return await self._loaded(attempt, module)
        process, start = coming
        attempt.occupy(process)
        await start
        return process

    async def fresh(self, attempt: Attempt, module: Module) -> Process:
        """A process under an interpreter of its own."""
        return await self._loaded(attempt, module, fresh=True)

    async def forked(self, attempt: Attempt, module: Module) -> Process:
        """A fork of a process that has imported the tool and never run it."""
        template = await self._template(attempt, module)
        if template.unforkable:
            return await self._loaded(attempt, module)
        await self._claim_room(attempt)
        if self._templates.get(template.key) is not template:
            self._room.leave()
            return await self.forked(attempt, module)
        try:
            process = self._standbys.take(template)
        except BaseException:
            self._room.leave()
            raise
        self._settle(attempt, process)
        process.follow_later()
        if not self._standbys.of(template):
            # Not before the call is sent: while this one works, there is time for the next.
            self._loop.call_soon(self._stand_by, template)
        return process

    def _stand_by(self, template: Process) -> None:
        if self._templates.get(template.key) is template:
            self._standbys.replenish(template)

    async def _loaded(self, attempt: Attempt, module: Module, *, fresh: bool = False) -> Process:
        process = await self._new(attempt, module)
        await self._start(process, fresh=fresh)
        return process

    async def _new(self, attempt: Attempt, module: Module) -> Process:
        """A process object that has a place of its own among the living."""
        await _look_around(module)
        await self._claim_room(attempt)
        try:
            process = self._register(module)
        except BaseException:
            self._room.leave()
            raise
        self._settle(attempt, process)
        return process

    async def _claim_room(self, attempt: Attempt) -> None:
        self._unused.make_room()
        await attempt.enter(self._room)

    def _settle(self, attempt: Attempt, process: Process) -> None:
        """The process has the place that was claimed, for as long as it lives, and serves the attempt."""
        process.has_room = not process.ended.done()
        if not process.has_room:
            self._room.leave()
        attempt.occupy(process)

    def _register(self, module: Module, place: Place | None = None) -> Process:
        place = place or Place.within(self._servers.area(module) or self._terms.directory)
        process = Process(module, self._terms, place)
        process.on_retired, process.on_buried = self._retired, self._buried
        self._alive.add(process)
        return process

    async def _start(self, process: Process, *, fresh: bool = False) -> None:
        """Bring a process to life with its tool loaded; nothing of it stays if that fails."""
        try:
            process.start(await self._servers.for_process(process), fresh=fresh)
            await process.load()
        except BaseException:
            process.end(grace_seconds=0)
            raise

    # -- ahead of a call ------------------------------------------------------------------

    async def make_ready(self, module: Module, level: Level, timeout_seconds: float) -> None:
        """Have one that a call will find, if that takes the place of nothing that was used lately."""
        await _look_around(module)
        if level is Level.FORK:
            await self._make_template_ready(module, timeout_seconds)
        elif level is Level.WARM:
            await self._unused.make_ready(module, timeout_seconds)

    async def _make_template_ready(self, module: Module, timeout_seconds: float) -> None:
        is_full = module.key not in self._templates and len(self._templates) >= self._max_templates
        if is_full and not is_spare(next(iter(self._templates.values()))):
            return
        attempt = Attempt(timeout_seconds, self._terms.grace_seconds, None, None)
        async with asyncio.timeout(timeout_seconds):
            template = await self._template(attempt, module)
        if not template.unforkable:
            self._stand_by(template)

    # -- templates ------------------------------------------------------------------------

    async def _template(self, attempt: Attempt, module: Module) -> Process:
        """The process to fork from; whoever comes first makes it, under its own time limit."""
        template = self._known_template(module)
        if template is None:
            gate = self._template_gates.setdefault(module.key, Gate(1))
            await attempt.enter(gate)
            try:
                template = self._known_template(module) or await self._new_template(attempt, module)
            finally:
                gate.leave()
        self._templates.pop(module.key, None)
        self._templates[module.key] = template
        template.idle_since = self._loop.time()
        return template

    def _known_template(self, module: Module) -> Process | None:
        template = self._templates.get(module.key)
        return template if template is not None and template.connection.is_open else None

    async def _new_template(self, attempt: Attempt, module: Module) -> Process:
        self._templates.pop(module.key, None)
        await _look_around(module)
        self._make_room_for_template()
        template = self._register(module)
        attempt.occupy(template)
        await self._start(template)
        if template.unforkable:
            self._log.warning("fork.fell_back", tool=module.name, reason=template.unforkable)
        template.listen(None, None)
        attempt.process = None
        return template

    def _make_room_for_template(self) -> None:
        while len(self._templates) >= self._max_templates:
            self._discard(next(iter(self._templates)))

    def _discard(self, key: Key) -> None:
        """Fork no more from this template.  Its end takes its forks along, so it comes after theirs."""
        template = self._templates.pop(key)
        self._standbys.give_up(template)
        self._discarded.add(template)
        self._end_if_done_with(template)

    def _end_if_done_with(self, template: Process) -> None:
        if template in self._discarded and not template.has_offspring:
            template.end(grace_seconds=0)

    # -- taking back ----------------------------------------------------------------------

    def give_back(self, process: Process) -> None:
        """The run is over: keep the process for the next one if it is fit."""
        if process.retired or process.ended.done() or not process.connection.is_open or not process.loaded:
            process.end(grace_seconds=0)
            return
        self._unused.add(process)

    def dismiss(self, process: Process) -> None:
        """The run is over, and was the process' only one: it leaves by itself, or is ended."""
        if not process.ended.done():
            process.dismiss()

    def refused(self, process: Process) -> None:
        """What the process imported is out of date, and so is the template that it may be a fork of."""
        process.end(grace_seconds=0)
        if process.key in self._templates:
            self._discard(process.key)

    def _retired(self, process: Process, run_id: str) -> None:
        """The process can't be reset after this run; if it is busy, its call will be refused."""
        self._log.info(
            "process.retired",
            run_id=run_id,
            tool=process.module.name,
            pid=process.pid,
            reason=process.retired,
        )
        if process in self._unused:
            self._unused.evict(process)

    def _buried(self, process: Process) -> None:
        if process.has_room:
            self._room.leave()
        self._alive.discard(process)
        self._standbys.forget(process)
        self._discarded.discard(process)
        self._unused.forget(process)
        if isinstance(process.owner, Process):
            self._end_if_done_with(process.owner)
        if self._templates.get(process.key) is process:
            del self._templates[process.key]

    def _prune(self) -> None:
        """End what has been idle for too long, now and then."""
        too_old = self._loop.time() - self._idle_seconds
        self._unused.evict_idle_since(too_old)
        for key in [key for key, template in self._templates.items() if template.idle_since <= too_old]:
            self._discard(key)
        self._servers.end_idle(too_old)
        self._pruning = self._loop.call_later(max(0.05, self._idle_seconds / 4), self._prune)
