"""Fork servers: bare interpreters that fork the processes of tools, and end and reap them."""

import asyncio
import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

from services.executor.isolation import sandbox
from services.executor.isolation.calls import Module
from services.executor.isolation.common import process_tree, protocol
from services.executor.isolation.connection import Connection, Disconnected
from services.executor.isolation.parent import MARK, Parent
from services.executor.isolation.process import Process, ProcessOptions, confinement, hashing

CHILD_FILE = Path(__file__).parent / "child" / "__main__.py"
HANDSHAKE_SECONDS = 30.0
STOP_SECONDS = 5.0
TERMINATION_SECONDS = 1.0
SWEEP_SECONDS = 0.05
KILL_ROUNDS = 5
KILL_INTERVAL_SECONDS = 0.1

_INTERPRETER_OPTIONS = ("-s", "-X", "utf8")
"""`multiprocessing` starts interpreters with the same options, and they must find what is installed."""

Key = tuple[str, ...]
OWN_INTERPRETER: Key = (sys.executable,)

log = structlog.get_logger(__name__)


class ForkServer(Parent):
    """The root of all processes under one interpreter.

    Args:
        python: the interpreter.
        environment: the folder of the environment that its processes enter when they are confined; without
            one, the interpreter looks for installed packages when it starts.
        limit_bytes: the most that one value in a message may have.
        environ: its environment, which its processes inherit.
        on_death: called once it can't fork any more.
        prefix: the command that starts it confined, if any.
        hash_seed: that of all its processes; empty for a random one.
    """

    def __init__(
        self,
        python: Path,
        limit_bytes: int,
        environ: Mapping[str, str],
        on_death: "Callable[[ForkServer], None]",
        environment: Path | None = None,
        prefix: Sequence[str] = (),
        hash_seed: str = "",
    ) -> None:
        super().__init__()
        loop = asyncio.get_running_loop()
        self.python = python
        self.environment = environment
        self.mark = os.urandom(8).hex()
        self._on_death = on_death
        self._hello: asyncio.Future[None] = loop.create_future()
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = self._start(theirs.fileno(), environ, prefix, hash_seed)
            except OSError:
                ours.close()
                raise
        self.namespace_pid = self._process.pid if prefix else 0
        self.connection = Connection(ours, limit_bytes, self._receive, self._closed)
        self.gone: asyncio.Future[None] = loop.create_future()
        self.idle_since = 0.0
        self._waiters = 0
        self._is_given_up = False
        self._pidfd = os.pidfd_open(self._process.pid)
        loop.add_reader(self._pidfd, self._exited)

    def _start(
        self, descriptor: int, environ: Mapping[str, str], prefix: Sequence[str], hash_seed: str
    ) -> subprocess.Popen[bytes]:
        becomes = "" if self.environment is None else str(self.environment / "bin" / "python")
        options = (*(("-S",) if becomes else ()), *_INTERPRETER_OPTIONS)
        outside = {name: value for name, value in environ.items() if not name.startswith("PYTHON")}
        return subprocess.Popen(
            [*prefix, str(self.python), *options, str(CHILD_FILE), becomes, str(descriptor)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=None,
            cwd=tempfile.gettempdir(),
            # Bound lazily, each symbol would be looked up again by every fork.
            env={**outside, **hashing(hash_seed), MARK: self.mark, "LD_BIND_NOW": "1"},
            pass_fds=[descriptor],
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """The process that was started: the server's subreaper, or the command that confines it."""
        return self._process.pid

    async def ready(self, timeout_seconds: float = HANDSHAKE_SECONDS) -> None:
        """Wait for the handshake.  Disconnected if there is none in time."""
        self._waiters += 1
        try:
            async with asyncio.timeout(timeout_seconds):
                await asyncio.shield(self._hello)
        except TimeoutError:
            self.connection.close("no handshake")
            raise Disconnected from None
        finally:
            self._waiters -= 1

    @property
    def is_idle(self) -> bool:
        """Whether it has no process and nobody is about to request one."""
        return not self.child_count and not self._waiters

    def _receive(self, message: dict[str, Any]) -> None:
        match message:
            case {"method": "hello", "params": {"version": protocol.VERSION}} if not self._hello.done():
                self._hello.set_result(None)
            case {"method": "forked", "params": params}:
                self.handle_forked(params)
            case {"method": "exited", "params": params}:
                self.handle_exited(params)
            case _:
                raise protocol.ProtocolBroken(f"the fork server said {message!r:.200}")

    def _closed(self, reason: str) -> None:
        if not self._hello.done():
            self._hello.set_exception(Disconnected())
            self._hello.exception()
        self.lose_children()
        self._on_death(self)

    def _exited(self) -> None:
        """Reap the process, and kill whatever it left behind."""
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self.connection.close()
        if self._process.wait() == 0:
            self.gone.set_result(None)
        else:
            self._kill_marked(KILL_ROUNDS)

    def _kill_marked(self, rounds: int) -> None:
        """Kill the descendants that nobody else can find, because the subreaper was killed, too.

        In several rounds: a process in the middle of an exec has no environment to recognize it by.
        """
        for pid in _pids_with(f"{MARK}={self.mark}".encode()):
            process_tree.send(pid, signal.SIGKILL)
        if rounds > 1:
            asyncio.get_running_loop().call_later(KILL_INTERVAL_SECONDS, self._kill_marked, rounds - 1)
        else:
            self.gone.set_result(None)

    def give_up(self) -> None:
        """Kill the server and all that it has forked.  The subreaper does so, or is killed itself."""
        if self.gone.done() or self._is_given_up:
            return
        self._is_given_up = True
        log.warning("forkserver.killed", pid=self.pid, python=str(self.python))
        self._process.terminate()
        self._unless_gone(TERMINATION_SECONDS, self._process.kill)

    def hang_up(self) -> None:
        """Close the connection, which ends the server and its processes; kill it if that takes too long."""
        self.connection.close()
        self._unless_gone(STOP_SECONDS, self.give_up)

    def _unless_gone(self, seconds: float, act: Callable[[], None]) -> None:
        timer = asyncio.get_running_loop().call_later(seconds, act)
        self.gone.add_done_callback(lambda _: timer.cancel())

    async def stop(self) -> None:
        """Hang up and wait until it is gone."""
        self.hang_up()
        await asyncio.shield(self.gone)


def _pids_with(variable: bytes) -> list[int]:
    """The processes that were started with this variable, `name=value`, in their environment."""
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [pid for pid in pids if variable in _environ(pid)]


def _environ(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


class ForkServers:
    """All fork servers of a pool.

    There is one for each interpreter.  Where confinement begins outside of the process, there is also one
    for each confined tool, with an area that holds the working directories of all its processes.
    """

    def __init__(self, options: ProcessOptions, log: Any, has_processes: Callable[[Key], bool]) -> None:
        self._options = options
        self._log = log
        self._has_processes = has_processes
        self._loop = asyncio.get_running_loop()
        self._by_key: dict[Key, ForkServer] = {}
        self.alive: set[ForkServer] = set()
        self._sweeping: asyncio.TimerHandle | None = None

    async def open(self) -> None:
        """Start the one of the service's own interpreter, which is kept so that no call waits for it."""
        await self._ready(OWN_INTERPRETER, Path(sys.executable))

    async def close(self) -> None:
        """End all of them and everything below them, and wait until they are gone."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        await asyncio.gather(*(server.stop() for server in self.alive))

    async def for_process(self, process: Process) -> ForkServer:
        """The server to fork this process from.  Request the fork before anything else is awaited."""
        python = process.module.python or Path(sys.executable)
        environment, hash_seed = process.module.prefix, process.module.hash_seed
        area = self.area(process.module)
        if area is None:
            key = tuple(filter(None, (str(python), str(environment or ""), hash_seed)))
            return await self._ready(key, python, environment, hash_seed=hash_seed)
        confined = confinement(process.module, self._options, area)
        assert confined is not None
        return await self._ready(process.key, python, environment, sandbox.command(confined), hash_seed)

    async def _ready(
        self,
        key: Key,
        python: Path,
        environment: Path | None = None,
        prefix: Sequence[str] = (),
        hash_seed: str = "",
    ) -> ForkServer:
        server = self._by_key.get(key)
        if server is None:
            options = self._options
            server = ForkServer(
                python, options.limit_bytes, options.environ, self._died, environment, prefix, hash_seed
            )
            self._by_key[key] = server
            self.alive.add(server)
            server.gone.add_done_callback(lambda _: self._gone(key, server))
        await server.ready()
        server.idle_since = self._loop.time()
        return server

    def sweep_soon(self) -> None:
        """A run is over: end what it has hidden from its own process, at most SWEEP_SECONDS later."""
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(SWEEP_SECONDS, self._sweep)

    def _sweep(self) -> None:
        self._sweeping = None
        for server in self.alive:
            server.sweep()

    def end_idle(self, too_old: float) -> None:
        """End those without a process since then.  Until then, nobody prunes the environment they run in."""
        for key, server in list(self._by_key.items()):
            if not server.is_idle:
                server.idle_since = self._loop.time()
            elif server.idle_since <= too_old and key != OWN_INTERPRETER:
                self._log.info("forkserver.dismissed", python=str(server.python))
                server.hang_up()

    def _died(self, server: ForkServer) -> None:
        for key in [key for key, known in self._by_key.items() if known is server]:
            del self._by_key[key]

    def _gone(self, key: Key, server: ForkServer) -> None:
        self.alive.discard(server)
        if key not in self._by_key and not self._has_processes(key):
            with contextlib.suppress(OSError):
                self._area_of(key).rmdir()

    def sizes(self) -> dict[str, int]:
        """The number of entries in each collection."""
        return {"fork_servers": len(self.alive), "fork_servers_by_key": len(self._by_key)}

    # -- areas ----------------------------------------------------------------------------

    def area(self, module: Module) -> Path | None:
        """Where a tool's processes have their working directories, if their server is confined already."""
        if not module.sandbox.limits_files or not isinstance(
            self._options.detect_sandbox(), sandbox.Bubblewrap
        ):
            return None
        area = self._area_of(module.key)
        area.mkdir(mode=0o700, exist_ok=True)
        return area

    def _area_of(self, key: Key) -> Path:
        return self._options.directory / hashlib.sha256(repr(key).encode()).hexdigest()[:16]
