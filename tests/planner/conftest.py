"""A pool, a store and an executor in this process; tools written on the spot."""

import textwrap
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import uv

from services.executor.artifacts import Keeper, LocalBlobs
from services.executor.bundles import Bundles
from services.executor.isolation.calls import Level
from services.executor.isolation.environment import Environments
from services.executor.isolation.pool import Pool
from services.executor.loader import Loader
from services.executor.policy import Defaults
from services.executor.retry import RetryPolicy
from services.planner.aggregation import Aggregator
from services.planner.backends.local import LocalExecutor
from services.planner.execution import ExecutionResult, RunOptions
from shared.messages import Policy

DEFAULTS = Defaults(30.0, RetryPolicy(1, 0, 0), Level.WARM, (), {})


class Laboratory:
    """Everything that executes and aggregates, over one folder of tools and one store."""

    def __init__(self, folder: Path, pool: Pool, inline_max_bytes: int = 100) -> None:
        self.folder = folder
        self.tools = folder / "tools"
        self.tools.mkdir(exist_ok=True)
        self.blobs = LocalBlobs(folder / "store")
        self._parts: Any = (
            Loader(
                self.tools,
                pool,
                Environments(folder / "environments", uv=Path(uv.find_uv_bin()), environ={}),
                Bundles(self.blobs, folder / "bundles"),
            ),
            pool,
        )
        self.executor = LocalExecutor(*self._parts, Keeper(self.blobs, inline_max_bytes), DEFAULTS)
        self.aggregator = Aggregator(*self._parts, Keeper(self.blobs, inline_max_bytes), DEFAULTS)
        self._runs = 0

    def tool(self, name: str, text: str) -> None:
        """Write a tool, its text dedented."""
        (self.tools / f"{name}.py").write_text(textwrap.dedent(text))

    async def run(self, tool: str, seed: int | None = None, **parameters: Any) -> ExecutionResult:
        """Execute a tool once, under a run id of its own."""
        self._runs += 1
        options = RunOptions(f"run-{self._runs}", Policy(seed=seed, timeout_seconds=3))
        return await self.executor.execute(tool, parameters, options)


MakeLaboratory = Callable[..., Laboratory]


@pytest.fixture
async def laboratory(tmp_path: Path) -> AsyncIterator[MakeLaboratory]:
    """Makes laboratories that share a pool and the tools."""
    pool = Pool(capacity=2)
    await pool.start()
    yield lambda **options: Laboratory(tmp_path, pool, **options)
    await pool.stop()
