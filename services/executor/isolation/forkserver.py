"""One bare interpreter that forks the processes of tools, and ends and buries them."""

import asyncio
import contextlib
import os
import socket
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import structlog

from services.executor.isolation import protocol
from services.executor.isolation.connection import Connection, Disconnected

CHILD_FILE = Path(__file__).with_name("child.py")
STOP_SECONDS = 5.0

log = structlog.get_logger(__name__)


class Burial(Protocol):
    """Whoever wants to know how a process ended."""

    def on_exited(self, status: int | None, peak_rss_bytes: int | None, cpu_seconds: float | None) -> None:
        """The process is gone; None where nobody could see how."""


class Owner:
    """A process that forks others, from here: the fork server, or one that has imported a tool."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._children: dict[int, Burial] = {}
        self.connection: Connection

    async def fork(self, descriptors: list[int], child: Burial, *, fresh: bool) -> int:
        """Start a process that speaks on the first descriptor; its id.  Disconnected if the owner is gone."""
        params = protocol.encode_value({"fresh": fresh})
        answer = self.connection.request("fork", params, descriptors)
        # Not tied to this task: a process whose birth nobody awaited must be ended all the same.
        answer.add_done_callback(lambda done: self._born(done, child))
        pid: int = (await asyncio.shield(answer))["pid"]
        return pid

    def _born(self, answer: asyncio.Future[Any], child: Burial) -> None:
        if answer.cancelled() or answer.exception() is not None:
            child.on_exited(None, None, None)
        else:
            self._children[answer.result()["pid"]] = child

    def end_child(self, pid: int, grace_seconds: float, *, stacks: bool) -> None:
        """Have the tree of `pid` ended: its stacks, TERM, the grace, KILL."""
        self.connection.notify("end", {"pid": pid, "grace_seconds": grace_seconds, "stacks": stacks})

    def bury(self, params: Mapping[str, Any]) -> None:
        """The owner saw one of its children end."""
        child = self._children.pop(params["pid"], None)
        if child is not None:
            child.on_exited(params["status"], params["rss"], params["cpu"])

    def orphan(self) -> None:
        """The owner is gone, and what it had forked has gone with it."""
        children, self._children = self._children, {}
        for child in children.values():
            child.on_exited(None, None, None)


class ForkServer(Owner):
    """The root of all processes under one interpreter."""

    def __init__(
        self, python: Path, limit_bytes: int, environ: Mapping[str, str], on_death: Callable[[], None]
    ) -> None:
        super().__init__(limit_bytes)
        self.python = python
        self._on_death = on_death
        self._hello: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = self._start(theirs.fileno(), environ)
        self.connection = Connection(ours, limit_bytes, self._receive, self._closed)

    def _start(self, descriptor: int, environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
        options = ["-I", "-S", "-X", "utf8"]
        return subprocess.Popen(
            [str(self.python), *options, str(CHILD_FILE), str(descriptor)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=None,
            cwd=tempfile.gettempdir(),
            env=dict(environ),
            pass_fds=[descriptor],
            start_new_session=True,
        )

    async def ready(self, timeout_seconds: float = 30.0) -> None:
        """Wait for the handshake; Disconnected if there is none."""
        try:
            await asyncio.wait_for(asyncio.shield(self._hello), timeout_seconds)
        except TimeoutError:
            self.connection.close("no handshake")
            raise Disconnected from None

    def _receive(self, message: dict[str, Any]) -> None:
        match message:
            case {"method": "hello", "params": {"version": protocol.VERSION}} if not self._hello.done():
                self._hello.set_result(None)
            case {"method": "exited", "params": params}:
                self.bury(params)
            case _:
                raise protocol.ProtocolBroken(f"the fork server said {message!r:.200}")

    def _closed(self, reason: str) -> None:
        if not self._hello.done():
            self._hello.set_exception(Disconnected())
            self._hello.exception()
        self.orphan()
        self._on_death()

    async def stop(self) -> None:
        """Hang up: the server ends everything below it, then itself."""
        self.connection.close()
        await self._gone()

    async def _gone(self) -> None:
        """Wait until the server's process is reaped; it is killed if it takes too long."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(self._process.pid)
            ended = asyncio.Event()
            loop.add_reader(pidfd, ended.set)
            try:
                await asyncio.wait_for(ended.wait(), STOP_SECONDS)
            except TimeoutError:
                self._process.kill()
                await ended.wait()
            finally:
                loop.remove_reader(pidfd)
                os.close(pidfd)
        self._process.poll()
