"""Runs the commands as a person in a shell would: real subprocesses, nothing imported."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PATIENCE_SECONDS = 60.0
FULLSEND = Path(sys.executable).with_name("fullsend")
NOT_OURS = {"REDIS_URL", "TOOLS_PATH", "SCHEDULE_MODE", "FORCE_COLOR", "PYTEST_CURRENT_TEST"}


@dataclass(frozen=True, slots=True)
class Done:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """Its output, line by line."""
        return self.out.splitlines()

    @property
    def error(self) -> str:
        """The one line that it failed with."""
        assert self.code != 0, self
        [line] = self.err.splitlines()
        assert line.startswith("error: "), line
        return line


@dataclass(frozen=True, slots=True)
class Shell:
    """A directory and an environment to run commands in."""

    directory: Path
    variables: Mapping[str, str]

    async def fullsend(self, *arguments: str) -> Done:
        """`fullsend ARGUMENTS`, to its end."""
        return await self.run(str(FULLSEND), *arguments)

    async def python(self, *arguments: str) -> Done:
        """`python ARGUMENTS`, to its end."""
        return await self.run(sys.executable, *arguments)

    async def run(self, *command: str) -> Done:
        """Any command, to its end."""
        async with self.started(*command) as process:
            out, err = await process.communicate()
        assert process.returncode is not None
        return Done(process.returncode, out.decode(), err.decode())

    @contextlib.asynccontextmanager
    async def started(self, *command: str) -> AsyncIterator[asyncio.subprocess.Process]:
        """A command while it runs; in the end it has to be gone, or is killed."""
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=self.directory,
            env={name: value for name, value in os.environ.items() if name not in NOT_OURS}
            | {"COLUMNS": "200", **self.variables},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=10_000_000,
        )
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                yield process
                await process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()


async def line_with(process: asyncio.subprocess.Process, *texts: str) -> str:
    """The next line of a process' output that holds all of `texts`."""
    assert process.stdout is not None
    while line := (await process.stdout.readline()).decode():
        if all(text in line for text in texts):
            return line
    raise AssertionError(f"the output ended without a line with {texts}")


async def interrupted(process: asyncio.subprocess.Process) -> Done:
    """What a process comes to that gets a Ctrl-C now."""
    process.send_signal(signal.SIGINT)
    out, err = await process.communicate()
    assert process.returncode is not None
    return Done(process.returncode, out.decode(), err.decode())


def row_of(done: Done, first: str) -> list[str]:
    """The cells of the row of a table that begins with `first`."""
    [row] = [line for line in done.lines if line.split("  ")[0] == first]
    return [cell.strip() for cell in row.split("  ") if cell.strip()]


def family(pid: int) -> set[tuple[int, str]]:
    """A process and all below it, each with the time that it was started."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int(_stat(int(entry.name))[1])
    found, fresh = set[int](), {pid}
    while fresh:
        found |= fresh
        fresh = {child for child, parent in parents.items() if parent in fresh} - found
    return {(one, started) for one in found if (started := started_at(one))}


def started_at(pid: int) -> str:
    """When a process was started, empty when there is none."""
    try:
        fields = _stat(pid)
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def survivors(processes: Sequence[tuple[int, str]] | set[tuple[int, str]]) -> list[int]:
    """Those that are still there."""
    return [pid for pid, started in processes if started_at(pid) == started]


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
