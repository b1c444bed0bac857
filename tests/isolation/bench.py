"""A pool, tools that a test writes, and the events of their calls."""

import asyncio
import contextlib
import errno
import hashlib
import os
import textwrap
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from msgspec import structs

from services.executor.isolation.calls import (
    Answer,
    Call,
    Capture,
    Effects,
    Event,
    Level,
    Limits,
    LogLine,
    Module,
    NothingKept,
    Raised,
    Report,
    Returned,
    Used,
)
from services.executor.isolation.environment.environments import Environment
from services.executor.isolation.pool import Pool
from services.executor.isolation.sandbox import Sandbox


class ArtifactList(NothingKept):
    """Keeps artifacts in a list, and returns those in `given` by reference."""

    def __init__(self) -> None:
        self.captures: list[Capture] = []
        self.contents: list[bytes] = []
        self.given: dict[str, bytes] = {}

    async def keep(self, capture: Capture) -> str:
        with capture.open() as file:
            self.contents.append(file.read())
        self.captures.append(capture)
        return f"kept:{len(self.contents)}"

    async def fetch(self, reference: str, path: Path) -> None:
        if reference not in self.given:
            await super().fetch(reference, path)
        path.write_bytes(self.given[reference])


def inside(environment: Environment, module: Module) -> Module:
    """The module as the loader returns it if the tool has this environment."""
    return replace(
        module,
        python=environment.started_by,
        environment=environment.digest,
        prefix=environment.prefix,
    )


class Bench:
    """Writes tools, runs them in one pool and keeps all events."""

    def __init__(self, pool: Pool, directory: Path) -> None:
        self.pool = pool
        self.directory = directory
        self.events: list[Event] = []
        self.used: list[Used | None] = []
        self._waiters: list[tuple[Callable[[Event], bool], asyncio.Future[Event]]] = []
        self._tools = 0

    def tool(
        self,
        source: str,
        name: str = "",
        python: Path | None = None,
        environment: Environment | None = None,
        sandbox: Sandbox = Sandbox.PROCESS,
    ) -> Module:
        """A tool with this source; it is called `tool<n>` and so may define `run`."""
        self._tools += 1
        name = name or f"tool{self._tools}"
        path = self.directory / f"{name}.py"
        content = textwrap.dedent(source).encode()
        path.write_bytes(content)
        module = Module(name, path, hashlib.sha256(content).hexdigest(), python, sandbox=sandbox)
        return module if environment is None else inside(environment, module)

    def call(
        self,
        tool: Module,
        params: dict[str, Any] | None = None,
        *,
        level: Level = Level.WARM,
        timeout_seconds: float = 30.0,
        limits: Limits | None = None,
        seed: int | None = None,
        environ: dict[str, str] | None = None,
        attempt: int = 1,
    ) -> Call:
        """A call, with defaults for everything that does not matter to a test."""
        return Call(
            tool, "exp:1-0", "exp", attempt, params or {}, timeout_seconds, level,
            limits or Limits(), seed, environ or {},
        )  # fmt: skip

    async def run(
        self,
        tool: Module | str,
        *,
        effects: Effects | None = None,
        cancel: asyncio.Event | None = None,
        **options: Any,
    ) -> Answer:
        """The answer to a call of a tool, or of a tool with this source."""
        module = self.tool(tool) if isinstance(tool, str) else tool
        return await self.perform(self.call(module, **options), self.report, effects=effects, cancel=cancel)

    async def perform(self, call: Call, report: Report, **options: Any) -> Answer:
        """The answer to a call, without what it used, which is kept apart."""
        answer = await self.pool.call(call, report, **options)
        if isinstance(answer, Returned | Raised):
            self.used.append(answer.used)
            return structs.replace(answer, used=None)
        return answer

    def report(self, event: Event) -> None:
        """Keep an event and wake those that wait for it."""
        self.events.append(event)
        for matches, waiter in self._waiters:
            if not waiter.done() and matches(event):
                waiter.set_result(event)

    async def until(self, matches: Callable[[Event], bool]) -> Event:
        """The first event for which `matches` is true; wait for it if there is none yet."""
        for event in self.events:
            if matches(event):
                return event
        waiter: asyncio.Future[Event] = asyncio.get_running_loop().create_future()
        self._waiters.append((matches, waiter))
        async with asyncio.timeout(20):
            return await waiter

    async def printed(self, text: str) -> None:
        """Wait until a run has printed this line."""
        await self.until(lambda event: isinstance(event, LogLine) and event.text == text)

    def lines(self, stream: str = "stdout") -> list[str]:
        """What the runs printed."""
        return [event.text for event in self.events if isinstance(event, LogLine) and event.stream == stream]

    def of(self, kind: type[Any]) -> list[Any]:
        """The events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]


@contextlib.asynccontextmanager
async def bench(directory: Path, **options: Any) -> AsyncIterator[Bench]:
    """A bench with a pool of its own."""
    pool = Pool(**{"capacity": 4, "environ": {"PATH": os.environ["PATH"]}, **options})
    await pool.start()
    try:
        yield Bench(pool, directory)
    finally:
        await pool.stop()


async def gone(pid: int, timeout_seconds: float = 10.0) -> None:
    """Wait until a process has ended that is not a child of this one."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError as exc:
        if exc.errno not in (errno.ESRCH, errno.EINVAL):  # EINVAL: it is ending this moment
            raise
        return
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(descriptor, ended.set)
    try:
        async with asyncio.timeout(timeout_seconds):
            await ended.wait()
    finally:
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
