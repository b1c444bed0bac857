"""Which tools this worker can begin, as it tells the others; and what makes a tool ready.

A claim begins only runs whose tool its worker has said to be ready: found, described, its
environment built.  All other orders are put aside, and hold no slot while their tool is prepared.
"""

import asyncio
import time

import structlog

from services.executor.loader import Loader, Tool
from services.executor.store import FOUND, Store, limit_of
from services.executor.tools.bundles import parse
from shared.backoff import until_available
from shared.errors import FullsendError, ToolError, ToolNotFoundError

log = structlog.get_logger()

LOOK_SECONDS = 5.0
CHECKS_PER_TTL = 3
PREPARED_AT_ONCE = 4
MISSING_SECONDS = 1.0
LOOK_AGAIN_SECONDS = 0.05
"""So soon a tool that wasn't there is looked for again, if an order has come meanwhile."""
FAILURE_SECONDS = 5.0
"""For so long, runs of a tool that can't be prepared here fail at once, instead of preparing it again."""


class Readiness:
    """The tools of one worker.

    Args:
        store: where they are told, and where orders wait.
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
        self._timeout_seconds = timeout_seconds
        # A worker without tools tells that it has none, by a name that no tool has.
        self._told: dict[str, str] = {"": FOUND}
        self._digests: dict[str, str] = {}
        self._preparing: dict[str, asyncio.Task[None]] = {}
        self._ringing: set[asyncio.Task[None]] = set()
        self._turns = asyncio.Semaphore(PREPARED_AT_ONCE)
        self._failures: dict[str, tuple[str, ToolError]] = {}
        self._missing: set[str] = set()
        self._told_missing: set[str] = set()
        self._again: set[str] = set()

    async def start(self) -> None:
        """Tell which tools there are, before this worker is known to be alive."""
        self._told |= dict.fromkeys(self._loader.names(), FOUND)
        await self._tell_all()

    async def run(self) -> None:
        """Keep what is told true, until cancelled."""
        look_at = 0.0
        try:
            while True:
                told = await until_available("tools", lambda: self._store.workers.count_tools(self._worker))
                if told < len(self._told):  # it expired while Redis or this worker was away
                    await self._tell_all()
                if time.monotonic() >= look_at:
                    await self._look()
                    look_at = time.monotonic() + LOOK_SECONDS
                await asyncio.sleep(min(LOOK_SECONDS, self._ttl_seconds / CHECKS_PER_TTL))
        finally:
            for task in [*self._preparing.values(), *self._ringing]:
                task.cancel()

    def want(self, name: str) -> None:
        """Prepare a tool that orders wait for, unless that is under way or failed a moment ago."""
        if name in self._failures:
            task = asyncio.create_task(self._ring(), name="ring")
            self._ringing.add(task)
            task.add_done_callback(self._ringing.discard)
        elif name in self._preparing:
            self._again.add(name)
        else:
            self._again.discard(name)
            task = asyncio.create_task(self._prepare(name), name=f"prepare {name}")
            self._preparing[name] = task
            task.add_done_callback(lambda done: self._prepared(name, done))

    def _prepared(self, name: str, done: asyncio.Task[None]) -> None:
        del self._preparing[name]
        if name in self._missing and name in self._again and not done.cancelled():
            self.want(name)  # an order came after the look

    def may_be_elsewhere(self, error: FullsendError) -> bool:
        """Whether a tool that was here has gone, and it isn't known yet whether another worker has it."""
        return isinstance(error, ToolNotFoundError) and error.name not in self._missing

    @property
    def missing(self) -> list[str]:
        """The tools that were looked for in vain a moment ago."""
        return list(self._missing)

    @property
    def failed(self) -> list[str]:
        """The tools that couldn't be prepared a moment ago."""
        return list(self._failures)

    async def load(self, name: str, limit_seconds: float) -> Tool:
        """Load a tool for a run: it has changed since it was prepared, or has an environment of its own.

        Raises:
            ToolError: as the loader does; `ToolTimeoutError` when it takes longer.
        """
        known = self._failures.get(name)
        if known is not None and known[0] == self._digest(name):
            raise known[1]
        try:
            tool = await self._loader.load_within(name, limit_seconds)
        except ToolNotFoundError:
            await self._gone(name)
            raise
        await self._loaded(name, tool)
        return tool

    async def _loaded(self, name: str, tool: Tool) -> None:
        """Tell that a tool is ready; does nothing if that was told."""
        self._digests[name] = self._digest(name)
        await self._tell(name, limit_of(tool.needs, f"tool:{tool.module.name}"))

    async def _gone(self, name: str) -> None:
        """Tell that this worker doesn't have a tool any more."""
        self._digests.pop(name, None)
        if self._told.pop(name, None) is not None:
            await self._untell(name)

    async def _untell(self, name: str) -> None:
        await until_available("tools", lambda: self._store.workers.untell_tool(self._worker, name))

    async def _tell(self, name: str, limit: str) -> None:
        if self._told.get(name) == limit:
            return
        self._told[name] = limit
        self._told_missing.discard(name)
        await until_available(
            "tools", lambda: self._store.workers.tell_tools(self._worker, {name: limit}, self._ttl_seconds)
        )

    async def _tell_all(self) -> None:
        await until_available(
            "tools", lambda: self._store.workers.tell_tools(self._worker, self._told, self._ttl_seconds)
        )

    async def _look(self) -> None:
        """Tell of new, changed and deleted tools, and prepare those that orders wait for anywhere."""
        names = set(self._loader.names())
        for name in [one for one in self._told if one and one not in names and parse(one) is None]:
            await self._gone(name)
        for name, digest in list(self._digests.items()):
            if self._digest(name) != digest:
                del self._digests[name]
                await self._tell(name, FOUND)
        for name in names - self._told.keys():
            await self._tell(name, FOUND)
        wanted = await until_available("tools", self._store.workers.wanted_tools)
        for name in self._told_missing.difference(wanted):
            self._told_missing.discard(name)
            await self._untell(name)
        for name in wanted:
            if self._told.get(name, FOUND) == FOUND:
                self.want(name)

    async def _prepare(self, name: str) -> None:
        started = time.monotonic()
        workers = self._store.workers
        looked_ms = await until_available("tools", workers.now_ms)
        try:
            tool = self._loader.loaded(name)
            if tool is None:
                if parse(name) is None:
                    self._loader.find(name)  # a tool that isn't there waits for no other's import
                async with self._turns:
                    tool = await self._loader.load(name, self._timeout_seconds)
        except ToolNotFoundError:
            await self._miss(name, looked_ms)
        except ToolError as exc:
            await self._fail(name, exc)
        except Exception:  # a fault of ours: its orders wait, and the next look at them tries again
            log.exception("tool.preparation_broke", tool=name)
        else:
            await self._loaded(name, tool)
            log.info("tool.ready", tool=name, seconds=round(time.monotonic() - started, 3))
            await self._ring()

    async def _miss(self, name: str, looked_ms: int) -> None:
        """Tell that this worker has looked for a tool in vain.

        Once all live workers have, the runs that waited for it begin, so that they fail.
        """
        await self._gone(name)
        self._told_missing.add(name)
        workers = self._store.workers
        await until_available(
            "tools", lambda: workers.tell_missing(self._worker, name, looked_ms, self._ttl_seconds)
        )
        self._missing.add(name)
        asyncio.get_running_loop().call_later(MISSING_SECONDS, self._missing.discard, name)
        await self._ring()
        await asyncio.sleep(LOOK_AGAIN_SECONDS)

    async def _fail(self, name: str, exc: ToolError) -> None:
        """Let the runs of a tool begin that no live worker can begin, so that they fail, for a moment."""
        self._failures[name] = (self._digest(name), exc)
        log.warning("tool.not_ready", tool=name, error=str(exc))
        await self._ring()
        await asyncio.sleep(FAILURE_SECONDS)
        self._failures.pop(name, None)

    async def _ring(self) -> None:
        await until_available("tools", lambda: self._store.queue.ring_for(self._worker))

    def _digest(self, name: str) -> str:
        try:
            return self._loader.find(name).digest
        except ToolError:
            return ""
