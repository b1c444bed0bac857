"""Which tools this worker can begin, as it tells the others; and what makes a tool ready.

A claim begins only runs whose tool its worker has said to be ready: found, described, its
environment built.  All other orders are put aside, and hold no slot while their tool is prepared.
"""

import asyncio
import time

import structlog

from services.executor.loader import Loader, Tool
from services.executor.store import FOUND, Store, limit_of
from shared.backoff import until_available
from shared.errors import ToolError, ToolNotFoundError

log = structlog.get_logger()

LOOK_SECONDS = 5.0
PREPARED_AT_ONCE = 4
FAILURE_SECONDS = 5.0
"""For so long, runs of a tool that can't be prepared fail at once, instead of preparing it again."""


class Readiness:
    """The tools of one worker.

    Args:
        store: where it is told, and where orders wait.
        loader: prepares tools.
        worker: this worker's name.
        ttl_seconds: how long a heartbeat holds.
        timeout_seconds: for the import of a tool.
    """

    def __init__(
        self, store: Store, loader: Loader, worker: str, ttl_seconds: float, timeout_seconds: float
    ) -> None:
        self._store = store
        self._loader = loader
        self._worker = worker
        self._ttl_seconds = ttl_seconds
        self.timeout_seconds = timeout_seconds
        self._told: dict[str, str] = {}
        self._failures: dict[str, tuple[str, ToolError]] = {}
        self._preparing: dict[str, asyncio.Task[None]] = {}
        self._missing: set[str] = set()
        self._turns = asyncio.Semaphore(PREPARED_AT_ONCE)

    async def run(self) -> None:
        """Tell which tools there are, again and again, until cancelled."""
        try:
            while True:
                await self._tell_found()
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            for task in self._preparing.values():
                task.cancel()

    def want(self, name: str) -> None:
        """Prepare a tool that orders wait for, unless that is under way."""
        if name not in self._preparing:
            task = asyncio.create_task(self._prepare(name), name=f"prepare {name}")
            self._preparing[name] = task
            task.add_done_callback(lambda _: self._preparing.pop(name, None))

    def take_missing(self) -> list[str]:
        """Return the tools that were looked for in vain since this was called last."""
        missing, self._missing = list(self._missing), set()
        return missing

    def failure(self, name: str) -> ToolError | None:
        """Return why the tool couldn't be prepared a moment ago, if its code is still the same."""
        known = self._failures.get(name)
        return known[1] if known is not None and known[0] == self._digest(name) else None

    async def loaded(self, name: str, tool: Tool) -> None:
        """Tell that a tool is ready; does nothing if that was told."""
        limit = limit_of(tool.needs, f"tool:{tool.module.name}")
        if self._told.get(name) != limit:
            await self._tell(name, limit)

    async def _tell(self, name: str, limit: str) -> None:
        await until_available(
            "tools", lambda: self._store.workers.tell_tools(self._worker, {name: limit}, self._ttl_seconds)
        )
        self._told[name] = limit

    async def _tell_found(self) -> None:
        """Tell of the tools in the folder, and of all again when that has expired meanwhile."""
        workers = self._store.workers
        told = await until_available("tools", lambda: workers.count_tools(self._worker))
        if told < len(self._told):
            self._told.clear()
        found = {name: FOUND for name in self._loader.names() if name not in self._told}
        await until_available("tools", lambda: workers.tell_tools(self._worker, found, self._ttl_seconds))
        self._told.update(found)

    async def _prepare(self, name: str) -> None:
        started = time.monotonic()
        try:
            async with self._turns:
                tool = await self._loader.load(name, self.timeout_seconds)
        except ToolNotFoundError:
            self._missing.add(name)
        except ToolError as exc:
            await self._fail(name, exc)
            return
        except Exception:  # a fault of ours: its orders wait, and the next look at them tries again
            log.exception("tool.preparation_broke", tool=name)
            return
        else:
            await self._tell(name, limit_of(tool.needs, f"tool:{tool.module.name}"))
            log.info("tool.ready", tool=name, seconds=round(time.monotonic() - started, 3))
        await until_available("tools", lambda: self._store.queue.ring_for(self._worker))

    async def _fail(self, name: str, exc: ToolError) -> None:
        """Let the runs of a tool that can't be prepared begin, so that they fail, for a moment."""
        self._failures[name] = (self._digest(name), exc)
        await self._tell(name, "")
        log.warning("tool.not_ready", tool=name, error=str(exc))
        await until_available("tools", lambda: self._store.queue.ring_for(self._worker))
        await asyncio.sleep(FAILURE_SECONDS)
        await until_available("tools", lambda: self._store.workers.untell_tool(self._worker, name))
        self._failures.pop(name, None)
        self._told.pop(name, None)

    def _digest(self, name: str) -> str:
        try:
            return self._loader.find(name).digest
        except ToolError:
            return ""
