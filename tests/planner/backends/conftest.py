"""Every backend on the same tools and the same store of artifacts."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Protocol

import pytest

from services.executor.isolation.calls import Report
from services.executor.store import Store
from services.planner.backends import BACKENDS, Backend
from services.planner.backends.fleet import FleetBackend
from services.planner.backends.local import LocalBackend
from services.planner.execution import Execution, ExecutionResult, RunOptions
from services.planner.runtime import RuntimeConfig, ToolRuntime
from shared.messages import Policy
from tests.conftest import Serve, Tools, eventually

CAPACITY = 4
INLINE_MAX_BYTES = 100


def execution(tool: str, parameters: dict[str, Any], number: int = 1, **policy: Any) -> Execution:
    """A call of a tool; `policy` are members of its policy."""
    return Execution(
        tool, parameters, RunOptions(f"run-{number}", Policy(**{"timeout_seconds": 20} | policy))
    )


class Harness:
    """One backend, and tools for it.

    Attributes:
        backend: not open yet; may be opened any number of times.
        folder: for whatever a tool writes.
    """

    def __init__(self, backend: Backend, tools: Tools, folder: Path) -> None:
        self.backend = backend
        self.folder = folder
        self.tool = tools

    async def run(
        self,
        tool: str,
        report: Report | None = None,
        cancel: asyncio.Event | None = None,
        policy: dict[str, Any] | None = None,
        **parameters: Any,
    ) -> ExecutionResult:
        """Call a tool."""
        call = execution(tool, parameters, **(policy or {}))
        return await self.backend.run(call, report=report, cancel=cancel)

    async def called(self, text: str, **options: Any) -> ExecutionResult:
        """Write `tool`, and call it in a block of its own."""
        self.tool("tool", text)
        async with self.backend:
            return await self.run("tool", **options)


class MakeFleet(Protocol):
    """Makes a backend on the test's Redis."""

    def __call__(self, plan_id: str = "p1", **options: Any) -> FleetBackend:
        """`options` are the backend's."""


@pytest.fixture
def fleet(store: Store, tmp_path: Path) -> MakeFleet:
    """Makes fleet backends; the test starts the executors."""

    def make(plan_id: str = "p1", **options: Any) -> FleetBackend:
        storage = {"storage_type": "local", "storage_base": str(tmp_path / "artifacts")}
        return FleetBackend(store, plan_id=plan_id, **{**storage, **options})

    return make


@pytest.fixture
def local(tools: Tools, tmp_path: Path) -> LocalBackend:
    """A local backend."""
    places = RuntimeConfig(
        tools_path=tmp_path / "tools",
        artifacts=str(tmp_path / "artifacts"),
        inline_artifact_max_bytes=INLINE_MAX_BYTES,
        bundles_path=tmp_path / "bundles",
        environments_path=tmp_path / "environments",
    )
    return LocalBackend(ToolRuntime(places, CAPACITY, os.environ), CAPACITY)


Executors = Callable[[], contextlib.AbstractAsyncContextManager[Any]]


@pytest.fixture
def executors(serve: Serve) -> Executors:
    """`async with executors()` runs an executor."""
    return lambda: serve(
        concurrency=CAPACITY, inline_artifact_max_bytes=INLINE_MAX_BYTES, tool_execution_timeout=5
    )


@pytest.fixture(params=list(BACKENDS))
async def harness(
    request: pytest.FixtureRequest,
    local: LocalBackend,
    fleet: MakeFleet,
    executors: Executors,
    tools: Tools,
    tmp_path: Path,
) -> AsyncIterator[Harness]:
    """Each backend in turn, with its executor and its tools."""
    async with contextlib.AsyncExitStack() as opened:
        if request.param == "fleet":
            await opened.enter_async_context(executors())
        make: dict[str, Callable[[], Backend]] = {"local": lambda: local, "fleet": fleet}
        yield Harness(make[request.param](), tools, tmp_path)


async def written(path: Path) -> str:
    """Wait until a tool has written the file, and return its text."""

    async def text() -> str:
        return path.read_text() if path.exists() else ""

    return str(await eventually(text, f"{path.name} to be written"))


async def gone(pid: str) -> None:
    """Wait until the process has ended."""

    async def has_ended() -> bool:
        return not Path(f"/proc/{pid}").exists()

    await eventually(has_ended, "the end of the process")
