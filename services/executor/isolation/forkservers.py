"""Keeps a fork server for each interpreter in use, and ends those that nobody needs any more."""

import asyncio
import contextlib
import hashlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from services.executor.isolation import sandbox
from services.executor.isolation.calls import Module
from services.executor.isolation.forkserver import ForkServer
from services.executor.isolation.process import Process
from services.executor.isolation.sandbox import Sandbox
from services.executor.isolation.terms import Terms, confinement

Key = tuple[str, ...]
OWN: Key = (sys.executable,)


class Servers:
    """All fork servers of a pool.

    One for each interpreter; where confinement begins outside of the process, one
    for each confined tool, with an area that holds the places of all its processes.
    """

    def __init__(self, terms: Terms, log: Any, has_processes: Callable[[Key], bool]) -> None:
        self._terms = terms
        self._log = log
        self._has_processes = has_processes
        self._loop = asyncio.get_running_loop()
        self._by_key: dict[Key, ForkServer] = {}
        self._all: set[ForkServer] = set()

    async def open(self) -> None:
        """Start the one of the service's own interpreter, which stays: no call shall wait for it."""
        await self._ready(OWN, Path(sys.executable), ())

    async def close(self) -> None:
        """End all of them and everything below them, and wait until they are gone."""
        await asyncio.gather(*(server.stop() for server in self._all))

    async def for_process(self, process: Process) -> ForkServer:
        """The one to fork this process, which has to be asked for before anything else is awaited."""
        python = process.module.python or Path(sys.executable)
        area = self.area(process.module)
        if area is None:
            return await self._ready((str(python),), python, ())
        confined = confinement(process.module, self._terms, area)
        assert confined is not None
        return await self._ready(process.key, python, sandbox.command(confined))

    async def _ready(self, key: Key, python: Path, prefix: Sequence[str]) -> ForkServer:
        server = self._by_key.get(key)
        if server is None:
            server = ForkServer(python, self._terms.limit_bytes, self._terms.environ, self._died, prefix)
            self._by_key[key] = server
            self._all.add(server)
            server.gone.add_done_callback(lambda _: self._gone(key, server))
        await server.ready()
        server.idle_since = self._loop.time()
        return server

    def end_idle(self, too_old: float) -> None:
        """End those that have had no process since then: what anybody runs in is never pruned."""
        for key, server in list(self._by_key.items()):
            if not server.is_idle:
                server.idle_since = self._loop.time()
            elif server.idle_since <= too_old and key != OWN:
                self._log.info("forkserver.dismissed", python=str(server.python))
                server.hang_up()

    def _died(self, server: ForkServer) -> None:
        for key in [key for key, known in self._by_key.items() if known is server]:
            del self._by_key[key]

    def _gone(self, key: Key, server: ForkServer) -> None:
        self._all.discard(server)
        if key not in self._by_key and not self._has_processes(key):
            with contextlib.suppress(OSError):
                self._area_of(key).rmdir()

    # -- areas ----------------------------------------------------------------------------

    def area(self, module: Module) -> Path | None:
        """Where the processes of a tool have their places, if their fork server is confined already."""
        if module.sandbox is Sandbox.OFF or not isinstance(sandbox.detect(), sandbox.Bubblewrap):
            return None
        area = self._area_of(module.key)
        area.mkdir(mode=0o700, exist_ok=True)
        return area

    def _area_of(self, key: Key) -> Path:
        return self._terms.directory / hashlib.sha256(repr(key).encode()).hexdigest()[:16]
