"""Keeps the processes between runs: starts them, lends them out, takes them back, gives them up."""

import asyncio
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from services.executor.isolation.attempt import Attempt
from services.executor.isolation.calls import Module
from services.executor.isolation.forkserver import ForkServer
from services.executor.isolation.gate import Gate
from services.executor.isolation.process import Process
from services.executor.isolation.terms import Terms

Key = tuple[str, ...]


def key_of(module: Module) -> Key:
    """What two modules must have in common to be served by the same process."""
    return module.name, str(module.path), module.digest, str(module.python or ""), module.environment


class Stable:
    """All processes of a pool.  `room` bounds how many may be alive, apart from templates."""

    def __init__(self, terms: Terms, room: int, idle_seconds: float, log: Any) -> None:
        self._terms = replace(terms, directory=Path(tempfile.mkdtemp(prefix="fullsend-")).resolve())
        self._room = Gate(room)
        self._max_templates = room
        self._idle_seconds = idle_seconds
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._servers: dict[Path, ForkServer] = {}
        self._all_servers: set[ForkServer] = set()
        self._alive: set[Process] = set()
        # Both in order of last use, the longest ago first.
        self._idle: dict[Process, None] = {}
        self._idle_by_key: dict[Key, list[Process]] = {}
        self._templates: dict[Key, Process] = {}
        self._template_gates: dict[Key, Gate] = {}
        self._pruning: asyncio.TimerHandle | None = None

    async def open(self) -> None:
        """Start the fork server of this interpreter."""
        await self._server(None)
        self._prune()

    async def close(self) -> None:
        """End every process and every fork server, and wait until they are gone."""
        if self._pruning is not None:
            self._pruning.cancel()
        for process in list(self._alive):
            process.end(grace_seconds=0 if process in self._idle else self._terms.grace_seconds)
        if self._alive:
            await asyncio.wait([process.ended for process in self._alive], timeout=5.0)
        await asyncio.gather(*(server.stop() for server in self._all_servers))
        await self._remove_directory()

    async def _remove_directory(self) -> None:
        try:
            self._terms.directory.rmdir()
        except OSError:
            await asyncio.to_thread(shutil.rmtree, self._terms.directory, ignore_errors=True)

    # -- lending --------------------------------------------------------------------------

    async def warm(self, attempt: Attempt, module: Module) -> Process:
        """A process that has this tool loaded: one that is idle, or a new one."""
        idle = self._idle_by_key.get(key_of(module))
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
        process = await self._new(attempt, module)
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
        if self._room.free == 0 and self._idle:
            self._evict(next(iter(self._idle)))
        await attempt.enter(self._room)
        try:
            process = self._register(module)
        except BaseException:
            self._room.leave()
            raise
        process.ended.add_done_callback(lambda _: self._room.leave())
        attempt.occupy(process)
        return process

    def _register(self, module: Module) -> Process:
        process = Process(module, self._terms)
        process.on_retired = self._retired
        self._alive.add(process)
        process.ended.add_done_callback(lambda _: self._buried(process))
        return process

    async def _start(self, process: Process, *, fresh: bool = False) -> None:
        """Bring a process to life with its tool loaded; nothing of it stays if that fails."""
        try:
            process.start(await self._server(process.module.python), fresh=fresh)
            await process.load()
        except BaseException:
            process.end(grace_seconds=0)
            raise

    async def _server(self, python: Path | None) -> ForkServer:
        python = python or Path(sys.executable)
        server = self._servers.get(python)
        if server is None:
            server = ForkServer(python, self._terms.limit_bytes, self._terms.environ, self._died)
            self._servers[python] = server
            self._all_servers.add(server)
            server.gone.add_done_callback(lambda _: self._all_servers.discard(server))
        await server.ready()
        return server

    def _died(self, server: ForkServer) -> None:
        if self._servers.get(server.python) is server:
            del self._servers[server.python]

    # -- templates ------------------------------------------------------------------------

    async def _template(self, attempt: Attempt, module: Module) -> Process:
        """The process to fork from; whoever comes first makes it, under its own time limit."""
        key = key_of(module)
        gate = self._template_gates.setdefault(key, Gate(1))
        await attempt.enter(gate)
        try:
            template = self._templates.pop(key, None)
            if template is None or not template.connection.is_open:
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
            key = next(iter(self._templates))
            self._templates.pop(key).end(grace_seconds=0)

    # -- taking back ----------------------------------------------------------------------

    def give_back(self, process: Process) -> None:
        """The run is over: keep the process for the next one if it is fit."""
        if process.retired or process.ended.done() or not process.connection.is_open or not process.loaded:
            process.end(grace_seconds=0)
            return
        process.idle_since = self._loop.time()
        self._idle[process] = None
        self._idle_by_key.setdefault(key_of(process.module), []).append(process)

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
            self._idle_by_key[key_of(process.module)].remove(process)

    def _buried(self, process: Process) -> None:
        self._alive.discard(process)
        self._forget_idle(process)
        if self._templates.get(key_of(process.module)) is process:
            del self._templates[key_of(process.module)]

    def _prune(self) -> None:
        """End what has been idle for too long, now and then."""
        too_old = self._loop.time() - self._idle_seconds
        for process in [process for process in self._idle if process.idle_since <= too_old]:
            self._evict(process)
        for key in [key for key, template in self._templates.items() if template.idle_since <= too_old]:
            self._templates.pop(key).end(grace_seconds=0)
        self._pruning = self._loop.call_later(max(0.05, self._idle_seconds / 4), self._prune)
