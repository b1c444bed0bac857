"""A tool runtime in this process, with tools that tests write."""

import contextlib
import os
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from services.executor.artifacts import LocalBlobs
from services.planner.aggregation import Aggregator
from services.planner.backends.local import LocalBackend
from services.planner.execution import Execution, ExecutionResult, RunOptions
from services.planner.runtime import RuntimeConfig, ToolRuntime
from shared.messages import Policy
from tests.planner.scripted import FakeTime


@pytest.fixture
def time() -> FakeTime:
    """A clock that only its own sleep advances."""
    return FakeTime()


class Laboratory:
    """A backend and an aggregator over one directory of tools and one store."""

    def __init__(self, folder: Path, inline_max_bytes: int = 100, allowed: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.tools = folder / "tools"
        self.tools.mkdir(exist_ok=True)
        self.blobs = LocalBlobs(folder / "store")
        places = RuntimeConfig(
            tools_path=self.tools,
            artifacts=str(folder / "store"),
            inline_artifact_max_bytes=inline_max_bytes,
            bundles_path=folder / "bundles",
            environments_path=folder / "environments",
            tool_environment_allowed=allowed,
        )
        self.runtime = ToolRuntime(places, 2, os.environ)
        self.backend = LocalBackend(self.runtime, 2)
        self.aggregator = Aggregator(self.runtime)
        self._runs = 0

    def tool(self, name: str, text: str) -> None:
        """Write a tool, its text dedented."""
        (self.tools / f"{name}.py").write_text(textwrap.dedent(text))

    async def run(self, tool: str, seed: int | None = None, **parameters: Any) -> ExecutionResult:
        """Execute a tool once, under a run id of its own."""
        self._runs += 1
        options = RunOptions(f"run-{self._runs}", Policy(seed=seed, timeout_seconds=3))
        return await self.backend.run(Execution(tool, parameters, options))


MakeLaboratory = Callable[..., Awaitable[Laboratory]]


@pytest.fixture
async def laboratory(tmp_path: Path) -> AsyncIterator[MakeLaboratory]:
    """Makes laboratories that share the tools and the store."""
    async with contextlib.AsyncExitStack() as opened:

        async def make(**options: Any) -> Laboratory:
            lab = Laboratory(tmp_path, **options)
            await opened.enter_async_context(lab.backend)
            return lab

        yield make
