"""Environments of tools: built once with uv, shared by tools with the same requirements, and kept."""

import asyncio
import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from services.executor.isolation.environment.environment_cache import EnvironmentCache
from services.executor.isolation.environment.requirements import Requirements
from services.executor.isolation.environment.uv import Interpreter, Uv
from services.executor.isolation.environment.uv_settings import masked, uv_settings
from services.executor.isolation.environment.walls import Walls
from shared.errors import SandboxUnavailableError, ToolEnvironmentError

PARALLEL_BUILDS = 2

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Environment:
    """An environment that is ready.

    Attributes:
        python: its interpreter.
        started_by: the interpreter that it was made with, in which no package can have changed anything.
        digest: of its requirements and of the packages that are installed; empty for the service's own
            environment.
        key: of its requirements, by which it is kept.
    """

    python: Path
    started_by: Path
    digest: str
    key: str = ""

    @property
    def prefix(self) -> Path:
        """The folder of the environment."""
        return self.python.parents[1]


@dataclass(frozen=True, slots=True)
class _Failure:
    """A build that failed; it is not repeated before `until`, in monotonic seconds."""

    message: str
    until: float


@dataclass(slots=True)
class _Preparation:
    """An environment that is being prepared, and the number of callers that wait for it."""

    task: asyncio.Task[Environment | _Failure]
    waiters: int = 0


class Environments:
    """Prepares environments when they are first needed, and keeps them.

    Args:
        folder: where they are kept; several processes may share it.
        uv: the uv binary.
        environ: the service's environment; uv gets the variables that it needs to reach packages.
        config_file: uv's configuration; by default, the user's or the system's.
        readable: further paths that packages may read while they are built.
        python: the interpreter to build with, unless the tool needs another.
        timeout_seconds: the time limit of one build.
        retry_seconds: a build that failed is not repeated for so long.
        clock: returns monotonic seconds.
    """

    def __init__(
        self,
        folder: Path,
        *,
        uv: Path,
        environ: Mapping[str, str],
        config_file: str = "",
        readable: Sequence[Path] = (),
        python: Path = Path(sys.executable),
        timeout_seconds: float = 600.0,
        retry_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = uv_settings(environ, config_file=config_file)
        self._uv = Uv(uv, self._settings)
        self._uv_binary = uv
        self._readable = tuple(readable)
        self._cache = EnvironmentCache(folder)
        self._own = Environment(python, python, "")
        self._timeout_seconds = timeout_seconds
        self._retry_seconds = retry_seconds
        self._clock = clock
        self._builds = asyncio.Semaphore(PARALLEL_BUILDS)
        self._ready: dict[Requirements, Environment] = {}
        self._failed: dict[Requirements, _Failure] = {}
        self._preparations: dict[Requirements, _Preparation] = {}
        self._interpreters: dict[str | None, Interpreter] = {}

    async def ensure(self, requirements: Requirements) -> Environment:
        """The environment that has `requirements`; it is built if there is none.

        Without dependencies, it is the service's own if that has a fitting interpreter.  All callers with
        the same requirements wait for one build, which is ended when nobody waits for it any more.

        Raises:
            ToolEnvironmentError: no interpreter fits, or the build failed; with the message of uv.
        """
        if requirements.is_empty:
            return self._own
        ready = self._ready.get(requirements)
        if ready is not None and (ready is self._own or self._cache.touch(ready.key, ready.python)):
            return ready
        answer = self._recent_failure(requirements) or await self._prepared(requirements)
        if isinstance(answer, _Failure):
            raise ToolEnvironmentError(answer.message)
        return answer

    async def find(self, requirements: Requirements) -> Environment | None:
        """The environment that has `requirements`, or None if it has to be built first.

        Raises:
            ToolEnvironmentError: no interpreter fits.
        """
        if requirements.is_empty:
            return self._own
        interpreter = await self._interpreter(requirements.requires_python)
        if not requirements.dependencies and interpreter == self._interpreters[None]:
            return self._own
        key = requirements.digest(interpreter.identity, self._settings.identity)
        python = self._cache.find(key)
        return None if python is None else self._finished(key, python, interpreter)

    async def prune(self, unused_for_seconds: float) -> list[str]:
        """Remove the environments that nobody has used for so long, and return their digests.

        One that is being built, or that a process on this machine uses, stays.
        """
        removed = await asyncio.to_thread(self._cache.prune, unused_for_seconds)
        for requirements in [key for key, ready in self._ready.items() if ready.key in removed]:
            del self._ready[requirements]
        if removed:
            log.info("environment.pruned", digests=removed)
        return removed

    def _recent_failure(self, requirements: Requirements) -> _Failure | None:
        now = self._clock()
        for stale in [key for key, failure in self._failed.items() if failure.until <= now]:
            del self._failed[stale]
        return self._failed.get(requirements)

    async def _prepared(self, requirements: Requirements) -> Environment | _Failure:
        """Wait for the preparation, together with other callers; the last one that leaves ends it."""
        preparation = self._preparations.get(requirements)
        if preparation is None:
            preparation = _Preparation(asyncio.create_task(self._prepare(requirements)))
            self._preparations[requirements] = preparation
        preparation.waiters += 1
        try:
            # Unlike awaiting the task, this does not cancel it when a waiting caller is cancelled.
            await asyncio.wait([preparation.task])
        finally:
            preparation.waiters -= 1
            if not preparation.waiters:
                del self._preparations[requirements]
                await _end(preparation.task)
        return preparation.task.result()

    async def _prepare(self, requirements: Requirements) -> Environment | _Failure:
        try:
            environment = await self._find_or_build(requirements)
        except ToolEnvironmentError as exc:
            return self._remember_failure(requirements, str(exc))
        except OSError as exc:
            return self._remember_failure(requirements, f"the tool's environment can't be stored: {exc}")
        self._ready[requirements] = environment
        return environment

    def _remember_failure(self, requirements: Requirements, message: str) -> _Failure:
        log.warning("environment.failed", dependencies=self._shown(requirements), reason=message)
        failure = _Failure(message, self._clock() + self._retry_seconds)
        self._failed[requirements] = failure
        return failure

    async def _find_or_build(self, requirements: Requirements) -> Environment:
        found = await self.find(requirements)
        if found is not None:
            return found
        interpreter = await self._interpreter(requirements.requires_python)
        key = requirements.digest(interpreter.identity, self._settings.identity)
        async with self._cache.locked(key), self._builds:
            python = self._cache.find(key) or await self._build(key, requirements, interpreter)
        return self._finished(key, python, interpreter)

    def _finished(self, key: str, python: Path, interpreter: Interpreter) -> Environment:
        parts = [key, *self._cache.installed(key)]
        digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        return Environment(python, interpreter.python, digest, key)

    async def _interpreter(self, requires_python: str | None) -> Interpreter:
        known = self._interpreters.get(requires_python)
        if known is not None and known.python.exists():
            return known
        if requires_python is None:
            found = await self._uv.identify(self._own.python)
        else:
            found = await self._uv.choose(requires_python, await self._interpreter(None))
        self._interpreters[requires_python] = found
        return found

    async def _build(self, digest: str, requirements: Requirements, interpreter: Interpreter) -> Path:
        """Build an environment and publish it, or leave nothing.  The caller holds its lock."""
        folder, place = self._cache.new_folder(digest), self._cache.new_folder(digest)
        began = self._clock()

        def walls() -> Walls:
            return Walls(place, interpreter.python, self._uv_binary, self._settings, self._readable)

        try:
            async with asyncio.timeout(self._timeout_seconds):
                installed = await self._uv.build(
                    folder,
                    interpreter.python,
                    requirements.dependencies,
                    requirements.exclude_newer,
                    None if requirements.wheels_only else walls,
                )
            about = {
                "dependencies": self._shown(requirements),
                "python": interpreter.version,
                "installed": installed,
            }
            self._cache.publish(digest, folder, about)
        except TimeoutError:
            raise ToolEnvironmentError(
                f"building the tool's environment took more than {self._timeout_seconds:g} s and was ended"
            ) from None
        except SandboxUnavailableError as exc:
            raise ToolEnvironmentError(f"a dependency of the tool has to be built, and {exc}") from None
        finally:
            await asyncio.to_thread(self._cache.sweep, digest)
        log.info("environment.built", digest=digest, seconds=round(self._clock() - began, 3))
        return folder / "bin" / "python"

    def _shown(self, requirements: Requirements) -> list[str]:
        return [masked(dependency, self._settings.secrets) for dependency in requirements.dependencies]


async def _end(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until it is over."""
    task.cancel()
    await asyncio.wait([task])
