"""Calls tools in subprocesses of this process: the pool, the tools and the store of artifacts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    """Where a runtime finds and stores things, and its defaults; the names are those of the settings."""

    tools_path: Path = Path("tools")
    artifacts: str = ".fullsend/artifacts"
    inline_artifact_max_bytes: int = INLINE_MAX_BYTES
    bundles_path: Path = Path(".fullsend/bundles")
    environments_path: Path = Path(".fullsend/environments")
    tool_execution_timeout: float = 300.0
    isolation: str = "warm"
    tool_environment: tuple[str, ...] = ()
    tool_environment_allowed: tuple[str, ...] = ()
    file_variables: Mapping[str, str] = field(default_factory=dict)
    sandbox: Sandbox = Sandbox.PROCESS
    sandbox_readable: tuple[Path, ...] = ()
    tool_capabilities_allowed: tuple[str, ...] = ()
    uv_config_file: str = ""
    tool_builds_allowed: bool = False
    reported_failures: bool = True


class ToolRuntime:
    """A pool of warm subprocesses, with the tools and the store that its calls use.

    Args:
        config: paths and defaults.
        capacity: how many calls at once.
        variables: the environment variables of which tools may get some.
        bundles: the store of bundles; None for the store of the artifacts.
    """

    def __init__(
        self, config: RuntimeConfig, capacity: int, variables: Mapping[str, str], bundles: Blobs | None = None
    ) -> None:
        self.pool = Pool(
            capacity=capacity,
            environ=allowed_environment(variables),
            readable=config.sandbox_readable,
        )
        self.threads = Threads(STORING_THREADS)
        blobs = open_blobs(config.artifacts)
        self.keeper = Keeper(blobs, config.inline_artifact_max_bytes)
        self.loader = Loader(
            config.tools_path,
            self.pool,
            Environments(
                config.environments_path,
                uv=Path(uv.find_uv_bin()),
                environ=variables,
                config_file=config.uv_config_file,
                readable=config.sandbox_readable,
            ),
            Bundles(bundles or blobs, config.bundles_path),
            config.sandbox,
            config.tool_capabilities_allowed,
            builds_allowed=config.tool_builds_allowed,
        )
        self.defaults = Defaults(
            timeout_seconds=config.tool_execution_timeout,
            backoff=ONCE,
            level=Level(config.isolation),
            environment=config.tool_environment,
            allowed=config.tool_environment_allowed,
            variables={**config.file_variables, **variables},
            reported_failures=config.reported_failures,
        )

    async def open(self) -> None:
        """Start the pool."""
        await self.pool.start()

    async def close(self) -> None:
        """Stop the pool and all its processes."""
        await self.pool.stop()


class MemoryCheckpoints:
    """Keeps the checkpoints and artifacts of one attempt in memory."""

    def __init__(self) -> None:
        self._steps: dict[str, Any] = {}
        self._artifacts: dict[str, Any] = {}

    async def recall(self, key: str) -> Any | None:
        """Return the result of a step as `{"value": ...}`, or None if the step has not ended."""
        return {"value": self._steps[key]} if key in self._steps else None

    async def record(self, key: str, value: Any) -> None:
        """Keep the result of a step."""
        self._steps[key] = value

    async def list_artifact(self, name: str, described: Mapping[str, Any]) -> None:
        """Record an artifact of the run."""
        self._artifacts[name] = described

    async def keep_partials(self, entries: Sequence[str]) -> None:
        """Keep nothing: a plan has the partial results of each attempt."""

    async def partials(self) -> Sequence[str]:
        """Return none: there is one attempt."""
        return ()

    async def artifacts(self) -> dict[str, Any]:
        """Return all artifacts of the run, sorted by name."""
        return dict(sorted(self._artifacts.items()))
