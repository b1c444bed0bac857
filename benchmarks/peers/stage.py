"""The set-up of one measurement: a server, a client, and the measured service."""

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError

from benchmarks.peers import processes
from benchmarks.peers.environments import ROOT, programs
from benchmarks.peers.inside import fullsend_tools, jobs
from benchmarks.peers.system import Case, System
from shared.connection import connect

LINE_BYTES = 2**26
ANSWER_SECONDS = 600.0
LOOK_SECONDS = 0.002
STILL_SECONDS = 0.25
STILL_SHARE = 0.15
STILL_PATIENCE_SECONDS = 8.0
"""How long to wait until a service is idle; some poll all the time."""


class StageError(Exception):
    """A system did not do what was requested; the message ends with the last lines of its logs."""


@dataclass(slots=True)
class Stage:
    """One measurement of one system.  `notes` is the file to which jobs write lines."""

    system: System
    case: Case
    url: str
    folder: Path
    notes: Path
    _environ: dict[str, str]
    _client: asyncio.subprocess.Process
    _services: list[subprocess.Popen[bytes]]
    _tag: str
    _server_pid: int

    def start(self) -> int:
        """Start the service; returns the time, in Unix nanoseconds."""
        begun = time.time_ns()
        for command in self.system.commands[self.case]:
            words = command.format(root=ROOT, url=self.url).split()
            words[0] = str(programs(self.system) / words[0])
            with (self.folder / "service.log").open("ab") as log:
                self._services.append(
                    subprocess.Popen(
                        words,
                        cwd=self.folder,
                        env=self._environ,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
                )
        return begun

    async def say(self, verb: str, **arguments: Any) -> dict[str, Any]:
        """Send a request to the client; returns its answer.

        Raises:
            StageError: the request failed, or was not answered in time.
        """
        assert self._client.stdin is not None, "it is a pipe"
        assert self._client.stdout is not None, "it is a pipe"
        self._client.stdin.write(json.dumps({"verb": verb, **arguments}).encode() + b"\n")
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                line = await self._client.stdout.readline()
        except TimeoutError:
            raise StageError(f"{self.system.name}: no answer to {verb!r}\n{self._last_words()}") from None
        answer: dict[str, Any] = json.loads(line or '{"error": "the client ended"}')
        if "error" in answer:
            raise StageError(f"{self.system.name}: {verb}: {answer['error']}\n{self._last_words()}")
        return answer

    def _last_words(self) -> str:
        lines = []
        for name in ("client.log", "service.log"):
            with contextlib.suppress(OSError):
                lines += (self.folder / name).read_text(errors="replace").splitlines()[-15:]
        return "\n".join(lines)

    def tree(self) -> set[int]:
        """The processes of the service, orphans included."""
        below = processes.descendants([one.pid for one in self._services if one.poll() is None])
        others = processes.descendants([os.getpid()]) - {os.getpid(), self._server_pid, self._client.pid}
        return below | processes.tagged(self._tag, others)

    def cpu_seconds(self) -> float:
        """CPU time of the service so far."""
        return processes.cpu_seconds(self.tree())

    async def still(self) -> None:
        """Wait until the service uses less than `STILL_SHARE` of a core, or for `STILL_PATIENCE_SECONDS`."""
        until = time.monotonic() + STILL_PATIENCE_SECONDS
        while time.monotonic() < until:
            before = self.cpu_seconds()
            await asyncio.sleep(STILL_SECONDS)
            if self.cpu_seconds() - before < STILL_SHARE * STILL_SECONDS:
                return

    async def noted(self, word: str, count: int, patience_seconds: float) -> int | None:
        """The time of the `count`-th line with this word, or None if it is not written in time."""
        until = time.monotonic() + patience_seconds
        while len(found := self.lines(word)) < count:
            if time.monotonic() > until:
                return None
            await asyncio.sleep(LOOK_SECONDS)
        return found[count - 1][1]

    def lines(self, word: str) -> list[tuple[int, int]]:
        """The process id and time of each line with this word."""
        text = self.notes.read_text() if self.notes.exists() else ""
        words = [line.split() for line in text.splitlines() if line.endswith(tuple("0123456789"))]
        return [(int(one[1]), int(one[2])) for one in words if len(one) == 3 and one[0] == word]

    async def kill(self) -> None:
        """Send SIGKILL to the whole service, and wait until it is gone."""
        while tree := self.tree():
            processes.kill(tree)
            await asyncio.to_thread(processes.until_gone, tree)
        for service in self._services:
            service.wait()
        self._services.clear()


@contextlib.asynccontextmanager
async def stage(system: System, case: Case, server: Path) -> AsyncIterator[Stage]:
    """Set up everything except the service, which `Stage.start` starts; everything is ended at the end."""
    tag = f"BENCH_STAGE={uuid.uuid4().hex}"
    with tempfile.TemporaryDirectory(prefix="peers-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        _lay_out(folder)
        async with running(server, folder) as (url, server_pid):
            environ = _environ(system, case, url, folder, tag)
            client = await _client(system, folder, environ)
            made = Stage(
                system, case, url, folder, folder / "notes.txt", environ, client, [], tag, server_pid
            )
            try:
                await made.say("greet")
                yield made
            finally:
                await made.kill()
                client.kill()
                await client.wait()


def _lay_out(folder: Path) -> None:
    """Write the executor's tools: copies of the jobs, each named like its function."""
    (folder / "tools").mkdir()
    for name in fullsend_tools.TOOLS:
        shutil.copy(jobs.__file__, folder / "tools" / f"{name}.py")


def _environ(system: System, case: Case, url: str, folder: Path, tag: str) -> dict[str, str]:
    passed = {name: value for name, value in os.environ.items() if name in ("HOME", "LANG", "TMPDIR", "TZ")}
    cron = {"CRON_NOTES": str(folder / "notes.txt")} if case is Case.CRON else {}
    name, _, value = tag.partition("=")
    path = f"{programs(system)}:{os.environ.get('PATH', os.defpath)}"
    ours = {"PATH": path, "PYTHONPATH": str(ROOT), "REDIS_URL": url, name: value}
    return {**passed, **system.environ(case), **cron, **ours}


async def _client(system: System, folder: Path, environ: dict[str, str]) -> asyncio.subprocess.Process:
    with (folder / "client.log").open("ab") as log:
        return await asyncio.create_subprocess_exec(
            str(programs(system) / "python"),
            *("-m", "benchmarks.peers.inside.driver", system.app),
            cwd=folder,
            env=environ,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            limit=LINE_BYTES,
        )


@contextlib.asynccontextmanager
async def running(program: Path, folder: Path) -> AsyncIterator[tuple[str, int]]:
    """A server without persistence on a free port; yields its address and process id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", "--appendonly"]
    process = subprocess.Popen([str(program), *options, "no"], stdout=subprocess.DEVNULL)
    url = f"redis://127.0.0.1:{port}/0"
    client = connect(url)
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            while not await _answers(client):
                await asyncio.sleep(LOOK_SECONDS)
        yield url, process.pid
    finally:
        await client.aclose()
        process.kill()
        process.wait()


async def _answers(client: Any) -> bool:
    with contextlib.suppress(RedisError, OSError):
        return bool(await client.ping())
    return False
