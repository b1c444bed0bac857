"""Runs the commands as a person in a shell would, in real processes."""

import asyncio
import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

PATIENCE_SECONDS = 60.0
OUTPUT_MAX_BYTES = 10_000_000
FULLSEND = Path(sys.executable).with_name("fullsend")
NOT_OURS = {"REDIS_URL", "TOOLS_PATH", "SCHEDULE_MODE", "FORCE_COLOR", "PYTEST_CURRENT_TEST"}

# Commands are forked from a process that has imported them: an interpreter's start and the imports take
# a hundred times longer than most commands.
_FORKSERVER = multiprocessing.get_context("forkserver")
_FORKSERVER.set_forkserver_preload(
    ["services.cli.main", "matplotlib.figure", "matplotlib.backends.backend_svg", "pyarrow.parquet"]
)


@dataclass(frozen=True, slots=True)
class Done:
    """The result of a command."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """The lines of its output."""
        return self.out.splitlines()

    @property
    def error(self) -> str:
        """The only line of its error output."""
        assert self.code != 0, self
        [line] = self.err.splitlines()
        assert line.startswith("error: "), line
        return line


class Running(Protocol):
    """A process, as `asyncio.create_subprocess_exec` returns it."""

    @property
    def pid(self) -> int:
        """Its process id."""

    @property
    def returncode(self) -> int | None:
        """Its exit code; None while it runs."""

    @property
    def stdout(self) -> asyncio.StreamReader | None:
        """Its output."""

    @property
    def stderr(self) -> asyncio.StreamReader | None:
        """Its error output."""

    def send_signal(self, signal: int) -> None:
        """Send it a signal."""

    def kill(self) -> None:
        """Send it SIGKILL."""

    async def wait(self) -> int:
        """Wait for its end; the exit code."""

    async def communicate(self) -> tuple[bytes, bytes]:
        """Read its output and error output to the end, and wait for its end."""


class Forked:
    """`fullsend ARGUMENTS` in a process forked from one that has imported it."""

    def __init__(self, arguments: Sequence[str], directory: Path, variables: Mapping[str, str]) -> None:
        self._ours, theirs = zip(*(_FORKSERVER.Pipe(duplex=False) for _ in range(2)), strict=True)
        self._theirs = theirs
        given = (list(arguments), str(directory), dict(variables), *theirs)
        self._process = _FORKSERVER.Process(target=_call, args=given)
        self._transports: list[asyncio.ReadTransport] = []

    async def start(self) -> None:
        """Start it.  The first start imports the commands, so it is not done on the event loop."""
        await asyncio.to_thread(self._process.start)
        for end in self._theirs:
            end.close()
        self.stdout, self.stderr = [await self._reader(end) for end in self._ours]
        self._ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._process.sentinel, self._end)

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit code, or minus the signal that has ended it; None while it runs."""
        return self._process.exitcode

    def send_signal(self, signal: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, signal)

    def kill(self) -> None:
        """Send it SIGKILL."""
        self._process.kill()

    async def wait(self) -> int:
        """Wait for its end; the exit code."""
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    async def communicate(self) -> tuple[bytes, bytes]:
        """Read its output and error output to the end, and wait for its end."""
        out, err = await asyncio.gather(self.stdout.read(), self.stderr.read())
        await self.wait()
        return out, err

    async def close(self) -> None:
        """Kill it if it still runs, and give everything back."""
        self.kill()
        await self.wait()
        for transport in self._transports:
            transport.close()

    def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._process.sentinel)
        self._ended.set()

    async def _reader(self, end: Connection) -> asyncio.StreamReader:
        reader = asyncio.StreamReader(limit=OUTPUT_MAX_BYTES)
        file = os.fdopen(os.dup(end.fileno()), "rb", buffering=0)
        end.close()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), file
        )
        self._transports.append(transport)
        return reader


def _call(
    arguments: Sequence[str], directory: str, variables: Mapping[str, str], out: Connection, err: Connection
) -> None:
    """In the forked process, what the command `fullsend` does in its own."""
    from services.cli.main import main

    os.environ.clear()
    os.environ.update(variables)
    os.chdir(directory)
    for number, end in enumerate((out, err), start=1):
        os.dup2(end.fileno(), number)
        end.close()
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - open to the end
    sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
    sys.exit(main(arguments))


@dataclass(frozen=True, slots=True)
class Shell:
    """A directory and an environment to run commands in."""

    directory: Path
    variables: Mapping[str, str]

    def with_variables(self, **variables: str) -> "Shell":
        """The same directory with further variables."""
        return Shell(self.directory, {**self.variables, **variables})

    async def fullsend(self, *arguments: str) -> Done:
        """`fullsend ARGUMENTS`, to its end."""
        async with self.called(*arguments) as process:
            return await _done(process)

    async def raw(self, *arguments: str) -> tuple[int, bytes, bytes]:
        """`fullsend ARGUMENTS`, to its end; the exit code, and both outputs as bytes."""
        async with self.called(*arguments) as process:
            out, err = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out, err

    async def python(self, *arguments: str) -> Done:
        """`python ARGUMENTS`, to its end."""
        return await self.run(sys.executable, *arguments)

    async def run(self, *command: str) -> Done:
        """Any command, to its end."""
        async with self.started(*command) as process:
            return await _done(process)

    @contextlib.asynccontextmanager
    async def called(self, *arguments: str) -> AsyncIterator[Running]:
        """`fullsend ARGUMENTS` while it runs; it must end within the block, or is killed."""
        process = Forked(arguments, self.directory, self._environment())
        await process.start()
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                yield process
                await process.wait()
        finally:
            await process.close()

    @contextlib.asynccontextmanager
    async def started(self, *command: str) -> AsyncIterator[Running]:
        """Any command while it runs; it must end within the block, or is killed."""
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=self.directory,
            env=self._environment(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=OUTPUT_MAX_BYTES,
        )
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                yield process
                await process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    def _environment(self) -> dict[str, str]:
        ours = {name: value for name, value in os.environ.items() if name not in NOT_OURS}
        return ours | {"COLUMNS": "200", **self.variables}


async def _done(process: Running) -> Done:
    out, err = await process.communicate()
    assert process.returncode is not None
    return Done(process.returncode, out.decode(), err.decode())


async def line_with(process: Running, *texts: str) -> str:
    """The next line of a process' output that contains all of `texts`."""
    assert process.stdout is not None
    while line := (await process.stdout.readline()).decode():
        if all(text in line for text in texts):
            return line
    raise AssertionError(f"the output ended without a line with {texts}")


async def interrupted(process: Running) -> Done:
    """Send Ctrl-C to a process, and wait for its end."""
    process.send_signal(signal.SIGINT)
    return await _done(process)


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
