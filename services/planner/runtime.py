"""What executing in this process takes: a pool, and the tools and the store that it works with."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uv

from services.executor.artifacts import Blobs, Keeper, open_blobs
from services.executor.artifacts.keeper import INLINE_MAX_BYTES
from services.executor.isolation.calls import Level
from services.executor.isolation.environment.environments import Environments
from services.executor.isolation.pool import Pool
from services.executor.isolation.sandbox import Sandbox
from services.executor.loader import Loader
from services.executor.policy import Defaults, allowed_environment
from services.executor.tools.bundles import Bundles
from shared.backoff import Backoff
from shared.threads import Threads

ONCE = Backoff(0.0, 0.0, max_attempts=1)
STORING_THREADS = 8


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """Where things are, and what applies where a tool says nothing; the names are those of the settings."""

    tools_path: Path = Path("tools")
    artifacts: str = ".fullsend/artifacts"
    inline_artifact_max_bytes: int = INLINE_MAX_BYTES
    bundles_path: Path = Path(".fullsend/bundles")
    environments_path: Path = Path(".fullsend/environments")
    tool_execution_timeout: float = 300.0
    isolation: str = "warm"
    tool_environment: tuple[str, ...] = ()
    sandbox: Sandbox = Sandbox.OFF
    sandbox_readable: tuple[Path, ...] = ()


class ToolRuntime:
    """A pool of warm subprocesses, with the tools and the store that its calls need.

    Args:
        places: where things are.
        capacity: how many calls at once.
        variables: the environment that tools may be given parts of.
        bundles: the store that bundle references are looked up in; None for that of the artifacts.
    """

    def __init__(
        self, places: RuntimeConfig, capacity: int, variables: Mapping[str, str], bundles: Blobs | None = None
    ) -> None:
        self.pool = Pool(
            capacity=capacity,
            environ=allowed_environment(variables),
            readable=places.sandbox_readable,
        )
        self.threads = Threads(STORING_THREADS)
        blobs = open_blobs(places.artifacts)
        self.keeper = Keeper(blobs, places.inline_artifact_max_bytes)
        self.loader = Loader(
            places.tools_path,
            self.pool,
            Environments(places.environments_path, uv=Path(uv.find_uv_bin()), environ=variables),
            Bundles(bundles or blobs, places.bundles_path),
            places.sandbox,
        )
        self.defaults = Defaults(
            timeout_seconds=places.tool_execution_timeout,
            backoff=ONCE,
            level=Level(places.isolation),
            environment=places.tool_environment,
            variables=variables,
        )

    async def open(self) -> None:
        """Have the pool ready."""
        await self.pool.start()

    async def close(self) -> None:
        """End everything; leaves no process."""
        await self.pool.stop()


class MemoryCheckpoints:
    """What outlives an attempt, for as long as this process lives."""

    def __init__(self) -> None:
        self._steps: dict[str, Any] = {}
        self._artifacts: dict[str, Any] = {}

    async def recall(self, key: str) -> Any | None:
        """The result of a step as `{"value": ...}`, or None when it was not done."""
        return {"value": self._steps[key]} if key in self._steps else None

    async def record(self, key: str, value: Any) -> None:
        """Keep what a step came to."""
        self._steps[key] = value

    async def list_artifact(self, name: str, described: Mapping[str, Any]) -> None:
        """Note that the run has this artifact."""
        self._artifacts[name] = described

    async def artifacts(self) -> dict[str, Any]:
        """All that the run has, by name."""
        return dict(sorted(self._artifacts.items()))
