"""The ground of one measurement: a server of its own, executors as operators start them, a tool."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from benchmarks.peers import processes, stage
from benchmarks.peers.environments import ROOT
from benchmarks.scale.notes import Notes
from services.executor.store.orders import NORMAL, Order
from services.executor.store.scripts import source
from shared import keys
from shared.connection import connect

PATIENCE_SECONDS = 600.0
LOOK_SECONDS = 0.01
FILLED_AT_ONCE = 10_000
EXIT_SECONDS = 60.0

# Runs are queued with the same function as in the store's scripts.
FILL = f"""
{source("orders.lua")}
for number = tonumber(ARGV[2]), tonumber(ARGV[3]) do
  local experiment = ARGV[4] .. number % tonumber(ARGV[5])
  local order = string.gsub(string.gsub(ARGV[1], '@experiment', experiment), '@number', number)
  queue_run(redis.call, KEYS[1], KEYS[2] .. experiment, order)
end
ring()
"""
EXPERIMENT = "exp_"


class ScaleError(Exception):
    """The measurement has failed."""


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU time until now, in seconds; `at` is monotonic time."""

    executors: float
    server: float
    at: float

    def since(self, before: Self) -> Self:
        """The usage since `before`."""
        return type(self)(self.executors - before.executors, self.server - before.server, self.at - before.at)


@dataclass(slots=True, eq=False)
class Ground:
    """The set-up for one size of one curve."""

    redis: Any
    url: str
    folder: Path
    notes: Notes
    _fill: Any
    queued: int = 0
    _executors: list[subprocess.Popen[bytes]] = field(default_factory=list)

    # -- executors ------------------------------------------------------------------------

    async def start(self, count: int = 1, **settings: Any) -> None:
        """Start `count` executors with default settings except `settings`, and wait until they listen."""
        variables = {
            "PATH": os.environ.get("PATH", os.defpath),
            "PYTHONPATH": str(ROOT),
            "REDIS_URL": self.url,
            **{name.upper(): str(value) for name, value in settings.items()},
        }
        command = [sys.executable, "-m", "services.executor.main"]
        for _ in range(count):
            with (self.folder / "executors.log").open("ab") as log:
                self._executors.append(
                    subprocess.Popen(
                        command, cwd=self.folder, env=variables, stdin=subprocess.DEVNULL, stderr=log
                    )
                )
        await self.until(lambda: self.redis.zcard(keys.listeners()), len(self._executors))

    async def stop(self) -> None:
        """Stop the executors gracefully."""
        for one in self._executors:
            one.terminate()
        for one in self._executors:
            code = await asyncio.to_thread(one.wait, EXIT_SECONDS)
            if code != 0:
                raise ScaleError(f"an executor ended with exit code {code}\n{self._last_words()}")
        self._executors.clear()

    def kill(self) -> None:
        """Kill the remaining executors."""
        left = self._tree()
        processes.kill(left)
        processes.until_gone(left)
        for one in self._executors:
            one.wait()

    def _tree(self) -> set[int]:
        return processes.descendants([one.pid for one in self._executors if one.poll() is None])

    # -- usage ----------------------------------------------------------------------------

    async def usage(self) -> Usage:
        """The usage of all executors with their processes, and of the server."""
        cpu = await self.redis.info("cpu")
        server = cpu["used_cpu_user"] + cpu["used_cpu_sys"]
        return Usage(processes.cpu_seconds(self._tree()), server, time.monotonic())

    def size(self) -> dict[str, float]:
        """The number of the executors' processes, and their memory."""
        tree = self._tree()
        return {"processes": len(tree), "pss_mb": processes.pss_bytes(tree) / 1e6}

    async def used_memory(self) -> int:
        """The memory that the server uses, in bytes."""
        memory = await self.redis.info("memory")
        return int(memory["used_memory"])

    async def kept_bytes(self) -> int:
        """The memory of all keys, in bytes; clients' buffers, which come and go, are not part of it."""
        each = [await self.redis.memory_usage(key, samples=0) async for key in self.redis.scan_iter()]
        return sum(size or 0 for size in each)

    # -- tools and runs ------------------------------------------------------------------

    def tool(self, name: str) -> None:
        """Write the tool that makes notes, under this name."""
        (self.folder / "tools").mkdir(exist_ok=True)
        (self.folder / "tools" / f"{name}.py").write_text(Notes.TOOL)

    async def experiments(self, count: int, tool: Callable[[int], str] = lambda _: "mark") -> None:
        """Write `count` experiments with the tools that `tool` names; they note their numbers by default."""
        async with self.redis.pipeline(transaction=False) as pipe:
            for number in range(count):
                params = {"path": str(self.notes.path), "number": number}
                definition = {"tool": tool(number), "params": json.dumps(params)}
                pipe.hset(keys.experiment(f"{EXPERIMENT}{number}"), mapping=definition)
            await pipe.execute()

    async def fill(self, count: int, experiments: int = 1, priority: str = NORMAL) -> None:
        """Queue `count` runs of the experiments in turn; their numbers continue."""
        order = Order("@experiment", "enqueue", params={"number": "@number"}, priority=priority).encode()
        last = self.queued + count
        while self.queued < last:
            upto = min(last, self.queued + FILLED_AT_ONCE)
            names = (keys.queue(priority), keys.open_runs(""))
            arguments = (order, self.queued, upto - 1, EXPERIMENT, experiments)
            await self._fill(names, arguments)
            self.queued = upto

    async def left(self) -> int:
        """The number of runs that have not ended."""
        return int(await self.redis.xlen(keys.queue(NORMAL)))

    async def done(self) -> int:
        """The number of queued runs that have ended."""
        return self.queued - await self.left()

    async def drained(self) -> None:
        """Wait until every run has ended."""
        await self.until(self.done, self.queued)

    # -- waiting --------------------------------------------------------------------------

    async def until(self, count: Callable[[], Any], goal: float, look_seconds: float = LOOK_SECONDS) -> None:
        """Wait until `count` returns at least `goal`.

        Raises:
            ScaleError: an executor has ended, or the time is over.
        """
        patience = time.monotonic() + PATIENCE_SECONDS
        while await count() < goal:
            self.check()
            if time.monotonic() > patience:
                raise ScaleError(f"{goal:,} were not reached in {PATIENCE_SECONDS:g} s\n{self._last_words()}")
            await asyncio.sleep(look_seconds)

    def check(self) -> None:
        """Raise `ScaleError` if an executor has ended."""
        if any(one.poll() is not None for one in self._executors):
            raise ScaleError(f"an executor ended\n{self._last_words()}")

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = (self.folder / "executors.log").read_text(errors="replace").splitlines()
            return "\n".join(lines[-15:])
        return ""


@contextlib.asynccontextmanager
async def ground(server: Path, options: Mapping[str, str] | None = None) -> AsyncIterator[Ground]:
    """A server without persistence and a directory for executors; everything is ended at the end."""
    with tempfile.TemporaryDirectory(prefix="scale-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        async with stage.running(server, folder) as (url, _), connect(url) as redis:
            for option, value in (options or {}).items():
                await redis.config_set(option, value)
            made = Ground(redis, url, folder, Notes(folder / "notes.txt"), redis.register_script(FILL))
            made.tool("mark")
            try:
                yield made
            finally:
                made.kill()
