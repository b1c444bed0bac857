"""Keeps the processes between runs: starts them, lends them out, takes them back, gives them up."""

import asyncio
import contextlib
import hashlib
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from services.executor.isolation import sandbox
from services.executor.isolation.attempt import Attempt
from services.executor.isolation.calls import Module
from services.executor.isolation.forkserver import ForkServer
from services.executor.isolation.gate import Gate
from services.executor.isolation.ground import Ground, clear
from services.executor.isolation.process import Process, confinement
from services.executor.isolation.sandbox import Sandbox
from services.executor.isolation.terms import Terms

Key = tuple[str, ...]


async def _look_around(module: Module) -> None:
    """Find out by what means a tool can be confined here; the first time, that may start a process."""
    if module.sandbox is not Sandbox.OFF:
        await asyncio.to_thread(sandbox.detect)


class Stable:
    """All processes of a pool.

    `room` bounds how many may be alive, apart from templates and the one fork of
    each that stands by.
    """

    def __init__(self, terms: Terms, room: int, idle_seconds: float, log: Any) -> None:
        self._ground = Ground.claim()
        self._terms = replace(terms, directory=self._ground.path)
        self._room = Gate(room)
        self._max_templates = room
        self._idle_seconds = idle_seconds
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._servers: dict[Key, ForkServer] = {}
        self._all_servers: set[ForkServer] = set()
        self._alive: set[Process] = set()
        # Both in order of last use, the longest ago first.
        self._idle: dict[Process, None] = {}
        self._idle_by_key: dict[Key, list[Process]] = {}
        self._templates: dict[Key, Process] = {}
        self._template_gates: dict[Key, Gate] = {}
        # The next fork of each template, made ahead of the call that it will serve.
        self._standbys: dict[Process, Process] = {}
        self._discarded: set[Process] = set()
        self._pruning: asyncio.TimerHandle | None = None

    async def open(self) -> None:
        """Start the fork server of this interpreter."""
        threading.Thread(target=clear, name="clear", daemon=True).start()
        python = Path(sys.executable)
        await self._server((str(python),), python, ())
        self._prune()

    async def close(self) -> None:
        """End every process and every fork server, and wait until they are gone."""
        if self._pruning is not None:
            self._pruning.cancel()
        unused = {*self._idle, *self._standbys.values()}
        for process in list(self._alive):
            process.end(grace_seconds=0 if process in unused else self._terms.grace_seconds)
        if self._alive:
            await asyncio.wait([process.ended for process in self._alive], timeout=5.0)
        await asyncio.gather(*(server.stop() for server in self._all_servers))
        if not self._ground.give_up_empty():
            await asyncio.to_thread(self._ground.give_up)

    # -- lending --------------------------------------------------------------------------

    async def warm(self, attempt: Attempt, module: Module) -> Process:
        """A process that has this tool loaded: one that is idle, or a new one."""
        idle = self._idle_by_key.get(module.key)
        while idle:
            process = idle.pop()
            self._idle.pop(process, None)
            if process.connection.is_open and not process.retired:
                attempt.occupy(process)
                return process
        return await self._loaded(attempt, module)

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
            process = self._next_fork(template)
        except BaseException:
            self._room.leave()
            raise
        self._settle(attempt, process)
        self._stand_by(template)
        return process

    def _next_fork(self, template: Process) -> Process:
        """The fork that stands by, or one that is made now."""
        standby = self._standbys.pop(template, None)
        return standby if standby is not None and standby.connection.is_open else self._fork(template)

    def _stand_by(self, template: Process) -> None:
        """Fork the next one while nobody waits for it yet."""
        with contextlib.suppress(OSError):
            self._standbys[template] = self._fork(template)

    def _fork(self, template: Process) -> Process:
        process = self._register(template.module, template.place)
        try:
            process.start(template)
        except BaseException:
            process.end(grace_seconds=0)
            raise
        process.loaded = True
        return process

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
        if self._room.free == 0 and self._idle:
            self._evict(next(iter(self._idle)))
        await attempt.enter(self._room)

    def _settle(self, attempt: Attempt, process: Process) -> None:
        """The process has the place that was claimed, for as long as it lives, and serves the attempt."""
        process.ended.add_done_callback(lambda _: self._room.leave())
        attempt.occupy(process)

    def _register(self, module: Module, area: Path | None = None) -> Process:
        process = Process(module, self._terms, area or self._area(module))
        process.on_retired = self._retired
        self._alive.add(process)
        process.ended.add_done_callback(lambda _: self._buried(process))
        return process

    async def _start(self, process: Process, *, fresh: bool = False) -> None:
        """Bring a process to life with its tool loaded; nothing of it stays if that fails."""
        try:
            process.start(await self._server_of(process), fresh=fresh)
            await process.load()
        except BaseException:
            process.end(grace_seconds=0)
            raise

    async def _server_of(self, process: Process) -> ForkServer:
        """The fork server for this process: where the confinement begins outside, its tool's own."""
        python = process.module.python or Path(sys.executable)
        area = self._area(process.module)
        if area is None:
            return await self._server((str(python),), python, ())
        confined = confinement(process.module, self._terms, area)
        assert confined is not None
        return await self._server(process.key, python, sandbox.command(confined))

    def _area(self, module: Module) -> Path | None:
        """Where the processes of a tool have their places, if their fork server is confined already."""
        if module.sandbox is Sandbox.OFF or not isinstance(sandbox.detect(), sandbox.Bubblewrap):
            return None
        digest = hashlib.sha256(repr(module.key).encode()).hexdigest()
        area = self._terms.directory / digest[:16]
        area.mkdir(mode=0o700, exist_ok=True)
        return area

    async def _server(self, key: Key, python: Path, prefix: Sequence[str]) -> ForkServer:
        server = self._servers.get(key)
        if server is None:
            server = ForkServer(python, self._terms.limit_bytes, self._terms.environ, self._died, prefix)
            self._servers[key] = server
            self._all_servers.add(server)
            server.gone.add_done_callback(lambda _: self._all_servers.discard(server))
        await server.ready()
        return server

    def _died(self, server: ForkServer) -> None:
        for key in [key for key, known in self._servers.items() if known is server]:
            del self._servers[key]

    # -- templates ------------------------------------------------------------------------

    async def _template(self, attempt: Attempt, module: Module) -> Process:
        """The process to fork from; whoever comes first makes it, under its own time limit."""
        key = module.key
        gate = self._template_gates.setdefault(key, Gate(1))
        await attempt.enter(gate)
        try:
            template = self._templates.pop(key, None)
            if template is None or not template.connection.is_open:
                await _look_around(module)
                self._make_room_for_template()
                template = self._register(module)
                attempt.occupy(template)
                await self._start(template)
                if template.unforkable:
                    self._log.warning("fork.fell_back", tool=module.name, reason=template.unforkable)
                template.listen(None, None)
                attempt.process = None
            self._templates[key] = template
            template.idle_since = self._loop.time()
            return template
        finally:
            gate.leave()

    def _make_room_for_template(self) -> None:
        while len(self._templates) >= self._max_templates:
            self._discard(next(iter(self._templates)))

    def _discard(self, key: Key) -> None:
        """Fork no more from this template.  Its end takes its forks along, so it comes after theirs."""
        template = self._templates.pop(key)
        standby = self._standbys.pop(template, None)
        if standby is not None:
            standby.end(grace_seconds=0)
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
        process.idle_since = self._loop.time()
        self._idle[process] = None
        self._idle_by_key.setdefault(process.key, []).append(process)

    def refused(self, process: Process) -> None:
        """What the process imported is out of date, and so is the template that it may be a fork of."""
        process.end(grace_seconds=0)
        if process.key in self._templates:
            self._discard(process.key)

    def _evict(self, process: Process) -> None:
        self._forget_idle(process)
        process.end(grace_seconds=0)

    def _retired(self, process: Process) -> None:
        """The process says that it can't be reset; if it is busy, its call will be refused."""
        self._log.info("process.retired", tool=process.module.name, pid=process.pid, reason=process.retired)
        if process in self._idle:
            self._evict(process)

    def _forget_idle(self, process: Process) -> None:
        if self._idle.pop(process, self) is None:
            self._idle_by_key[process.key].remove(process)

    def _buried(self, process: Process) -> None:
        self._alive.discard(process)
        self._standbys.pop(process, None)
        self._discarded.discard(process)
        self._forget_idle(process)
        if isinstance(process.owner, Process):
            self._end_if_done_with(process.owner)
        if self._templates.get(process.key) is process:
            del self._templates[process.key]

    def _prune(self) -> None:
        """End what has been idle for too long, now and then."""
        too_old = self._loop.time() - self._idle_seconds
        for process in [process for process in self._idle if process.idle_since <= too_old]:
            self._evict(process)
        for key in [key for key, template in self._templates.items() if template.idle_since <= too_old]:
            self._discard(key)
        self._pruning = self._loop.call_later(max(0.05, self._idle_seconds / 4), self._prune)
