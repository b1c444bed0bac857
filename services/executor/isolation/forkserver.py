"""One bare interpreter that forks the processes of tools, and ends and buries them."""

import asyncio
import itertools
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import structlog
from msgspec import Struct

from services.executor.isolation.common import process_tree, protocol
from services.executor.isolation.connection import Connection, Disconnected

CHILD = Path(__file__).parent / "child" / "__main__.py"
MARK = "FULLSEND_NEST"
"""An environment variable of every process below a fork server; finds those that have lost their parent."""

STOP_SECONDS = 5.0
GUARD_SECONDS = 1.0
PING_SECONDS = 2.0
MAX_STATUS = 0xFFFF
SWEEPS = 5
SWEEP_SECONDS = 0.1
MAX_BIRTHS = 8
"""How many processes are forked at a time: their descriptors have to fit into one message."""

_tokens = itertools.count(1)

log = structlog.get_logger(__name__)


class Offspring(Protocol):
    """Whoever wants to know what becomes of a process that was forked for it."""

    def on_forked(self, pid: int) -> None:
        """The process exists."""

    def on_exited(
        self, status: int | None, peak_rss_bytes: int | None, cpu_seconds: float | None, problem: str = ""
    ) -> None:
        """The process is gone; None where nobody could see how.  `problem` is why it never was."""


class Birth(Struct, frozen=True):
    """A process that is to be forked: it speaks on the first of the descriptors, which are passed on.

    A fork of a process that has imported a tool takes up its `places` before it is called.
    """

    child: Offspring
    descriptors: Sequence[int]
    places: Mapping[str, str]


class Owner:
    """A process that forks others, from here: the fork server, or one that has imported a tool.

    Requests name a child by a token of ours, not by its process id: so they can
    be sent before the child exists, and never meet a stranger that got its id.
    """

    connection: Connection
    mark: str = ""
    nest: int = 0
    """The process that has made the namespace of this one's children, if they have one of their own."""

    def __init__(self) -> None:
        self._offspring: dict[int, Offspring] = {}

    def fork(self, births: Sequence[Birth], *, fresh: bool) -> list[int]:
        """Have processes started, MAX_BIRTHS at most; the tokens to name them by.

        Several at a time, because the pages that the owner touches between two forks are copied for each.
        """
        tokens = [next(_tokens) for _ in births]
        for token, birth in zip(tokens, births, strict=True):
            self._offspring[token] = birth.child
        children = [(token, birth.places) for token, birth in zip(tokens, births, strict=True)]
        descriptors = [descriptor for birth in births for descriptor in birth.descriptors]
        self.connection.notify("fork", {"children": children, "fresh": fresh}, descriptors)
        if not self.connection.is_open:
            self.orphan()
        return tokens

    @property
    def has_offspring(self) -> bool:
        """Whether anything that it forked is still there, or about to be."""
        return bool(self._offspring)

    @property
    def offspring(self) -> int:
        """How many processes that it forked are there, or about to be."""
        return len(self._offspring)

    def end_child(self, token: int, grace_seconds: float, *, stacks: bool) -> None:
        """Have a child's tree ended: its stacks, TERM, the grace, KILL."""
        self.connection.notify("end", {"child": token, "grace_seconds": grace_seconds, "stacks": stacks})

    def announce(self, params: Mapping[str, Any]) -> None:
        """The owner says that children were born."""
        for token, number in params["children"]:
            if token in self._offspring:
                pid = int(number)
                pid = process_tree.seen_from_outside(self.nest, pid) if self.nest else pid
                self._offspring[token].on_forked(pid)

    def bury(self, params: Mapping[str, Any]) -> None:
        """The owner saw children end; ValueError, with nothing done, for one whose end makes no sense."""
        for ended in params["children"]:
            match ended:
                case {
                    "child": int(token),
                    "status": int() | None as status,
                    "rss": int() | None as rss_bytes,
                    "cpu": int() | float() | None as cpu_seconds,
                } if status is None or 0 <= status <= MAX_STATUS:
                    self._bury(token, status, rss_bytes, cpu_seconds, str(ended.get("problem", "")))
                case _:
                    raise ValueError("an end that is none")

    def _bury(
        self,
        token: int,
        status: int | None,
        rss_bytes: int | None,
        cpu_seconds: float | None,
        problem: str,
    ) -> None:
        child = self._offspring.pop(token, None)
        if child is not None:
            child.on_exited(status, rss_bytes, cpu_seconds, problem)

    def check(self) -> None:
        """Something that was asked for is overdue: end the owner unless it still answers."""
        answer = self.connection.request("ping", b"{}")
        asyncio.get_running_loop().call_later(PING_SECONDS, lambda: None if answer.done() else self.give_up())

    def give_up(self) -> None:
        """End the owner itself, by force."""
        raise NotImplementedError

    def orphan(self) -> None:
        """The owner is gone, and what it had forked has gone with it."""
        offspring, self._offspring = self._offspring, {}
        for child in offspring.values():
            child.on_exited(None, None, None)


class ForkServer(Owner):
    """The root of all processes under one interpreter; `prefix` is the command that starts it confined."""

    def __init__(
        self,
        python: Path,
        limit_bytes: int,
        environ: Mapping[str, str],
        on_death: "Callable[[ForkServer], None]",
        prefix: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.python = python
        self._on_death = on_death
        self._hello: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.mark = os.urandom(8).hex()
        sock, self._process = _started([*prefix, str(python)], {**environ, MARK: self.mark})
        self.nest = self._process.pid if prefix else 0
        self.connection = Connection(sock, limit_bytes, self._receive, self._closed)
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.idle_since = 0.0
        self._awaited = 0
        self._is_given_up = False
        self._pidfd = os.pidfd_open(self._process.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._ended)

    async def ready(self, timeout_seconds: float = 30.0) -> None:
        """Wait for the handshake; Disconnected if there is none."""
        self._awaited += 1
        try:
            async with asyncio.timeout(timeout_seconds):
                await asyncio.shield(self._hello)
        except TimeoutError:
            self.connection.close("no handshake")
            raise Disconnected from None
        finally:
            self._awaited -= 1

    @property
    def is_idle(self) -> bool:
        """Whether it has no process and nobody is about to ask for one."""
        return not self.has_offspring and not self._awaited

    def _receive(self, message: dict[str, Any]) -> None:
        match message:
            case {"method": "hello", "params": {"version": protocol.VERSION}} if not self._hello.done():
                self._hello.set_result(None)
            case {"method": "forked", "params": params}:
                self.announce(params)
            case {"method": "exited", "params": params}:
                self.bury(params)
            case _:
                raise protocol.ProtocolBroken(f"the fork server said {message!r:.200}")

    def _closed(self, reason: str) -> None:
        if not self._hello.done():
            self._hello.set_exception(Disconnected())
            self._hello.exception()
        self.orphan()
        self._on_death(self)

    def _ended(self) -> None:
        """The process is over: bury it, so that it doesn't stay a zombie, and whatever it left."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self.connection.close()
        if self._process.wait() == 0:
            self.gone.set_result(None)
        else:
            self._sweep(SWEEPS)

    def _sweep(self, times: int) -> None:
        """End what a server could not whose guard died by force as well: orphans that left its session.

        More than once: a process in the middle of an exec has no environment to know it by.
        """
        for pid in _marked(f"{MARK}={self.mark}".encode()):
            process_tree.send(pid, signal.SIGKILL)
        if times > 1:
            asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep, times - 1)
        else:
            self.gone.set_result(None)

    def give_up(self) -> None:
        """End the server and all that it had forked by force: its guard does, or is ended itself."""
        if self.gone.done() or self._is_given_up:
            return
        self._is_given_up = True
        log.warning("forkserver.killed", pid=self._process.pid, python=str(self.python))
        self._process.terminate()
        overdue = asyncio.get_running_loop().call_later(GUARD_SECONDS, self._process.kill)
        self.gone.add_done_callback(lambda _: overdue.cancel())

    def hang_up(self) -> None:
        """The server ends everything below it, then itself.  It is killed if that takes too long."""
        self.connection.close()
        overdue = asyncio.get_running_loop().call_later(STOP_SECONDS, self.give_up)
        self.gone.add_done_callback(lambda _: overdue.cancel())

    async def stop(self) -> None:
        """Hang up and wait until it is gone."""
        self.hang_up()
        await asyncio.shield(self.gone)


def _started(
    interpreter: Sequence[str], environ: Mapping[str, str]
) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """A new fork server, and the socket to talk to it.  Raises OSError if it can't be started."""
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            process = subprocess.Popen(
                [*interpreter, "-I", "-S", "-X", "utf8", str(CHILD), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=None,
                cwd=tempfile.gettempdir(),
                # Symbols that are resolved on first use would be resolved again in every fork.
                env={**environ, "LD_BIND_NOW": "1"},
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        except OSError:
            ours.close()
            raise
    return ours, process


def _marked(mark: bytes) -> list[int]:
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [pid for pid in pids if mark in _environ(pid)]


def _environ(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []
