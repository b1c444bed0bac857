"""The service as operators start it: a process of its own, its log, and all that runs below it."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from tests.conftest import PATIENCE_SECONDS, eventually

ROOT = Path(__file__).parents[2]


class Worker:
    """`python -m services.executor.main`, running.  `lines` is its log; `noise` what else it printed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []
        self.noise: list[str] = []
        self._changed = asyncio.Condition()
        self._reading = asyncio.create_task(self._read())

    async def said(self, event: str, **fields: Any) -> dict[str, Any]:
        """The first log line of that event with these fields; waits for it."""
        wanted = {"event": event} | fields

        def found() -> list[dict[str, Any]]:
            return [line for line in self.lines if line.items() >= wanted.items()]

        async with asyncio.timeout(PATIENCE_SECONDS), self._changed:
            await self._changed.wait_for(lambda: found() or self._reading.done())
            assert found(), f"it ended without saying {wanted}: {self.lines} {self.noise}"
            return found()[0]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the service alone."""
        self.process.send_signal(number)

    async def ended(self) -> int:
        """The exit code, once the process has ended and its log is read; shown if the test fails."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self._reading
            code = await self.process.wait()
        print(f"exit code {code}", *self.lines, *self.noise, sep="\n")
        return code

    def below(self) -> list[int]:
        """Every process below the service now."""
        return _below(self.process.pid)

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            async with self._changed:
                self._take(line.decode())
                self._changed.notify_all()
        async with self._changed:
            self._changed.notify_all()

    def _take(self, line: str) -> None:
        try:
            self.lines.append(json.loads(line))
        except ValueError:
            self.noise.append(line)


@contextlib.asynccontextmanager
async def worker(url: str, folder: Path, settings: Mapping[str, Any]) -> AsyncIterator[Worker]:
    """The service as a process, with `settings` by field name; killed at the end if it still runs."""
    chosen = {"redis_url": url, "tools_path": folder / "tools", "heartbeat_ttl": 1.0} | dict(settings)
    variables = {name.upper(): str(value) for name, value in chosen.items()}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.executor.main"),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        stderr=asyncio.subprocess.PIPE,
        limit=10_000_000,
    )
    one = Worker(process)
    try:
        yield one
    finally:
        if process.returncode is None:
            process.kill()
        await one.ended()


async def nobody_is_left(pids: list[int]) -> None:
    """Wait until none of these processes exists."""

    async def gone() -> bool:
        return not any(_is_alive(pid) for pid in pids)

    await eventually(gone, "the end of what it had started")


def _is_alive(pid: int) -> bool:
    return (_fields(pid) or ["Z"])[0] not in "ZX"


def _below(pid: int) -> list[int]:
    parents = {int(entry.name): _fields(int(entry.name)) for entry in Path("/proc").glob("[0-9]*")}
    found = [pid]
    for one in found:
        found += [child for child, fields in parents.items() if fields and int(fields[1]) == one]
    return found[1:]


def _fields(pid: int) -> list[str]:
    """State, parent, ... of a process as in proc(5) from field 3 on; nothing if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
