"""The system under test: a Redis server that can be restarted, and executors."""

import asyncio
import contextlib
import ctypes
import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

from redis.exceptions import RedisError

from shared.connection import connect

ROOT = Path(__file__).parents[2]
MAX_ATTEMPTS = 3
PATIENCE_SECONDS = 120.0


class Server:
    """A Redis that can be restarted with its data.

    Args:
        program: the server's.
        folder: where it keeps its data.
        port: where it listens; 0 for any.
    """

    def __init__(self, program: Path, folder: Path, port: int = 0) -> None:
        self._program = program
        self._folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            self._port = int(probe.getsockname()[1])
        self.url = f"redis://127.0.0.1:{self._port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None, "it was started"
        return self._process.pid

    async def start(self) -> None:
        """Start it, and wait until it answers."""
        options = f"--port {self._port} --bind 127.0.0.1 --appendonly yes --dir {self._folder}"
        command = [str(self._program), *options.split(" ")]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        client = connect(self.url)
        while True:
            with contextlib.suppress(RedisError, OSError):
                await client.ping()
                break
            await asyncio.sleep(0.02)
        await client.aclose()

    async def restart(self) -> None:
        """Stop it gracefully, wait a moment, and start it again."""
        await self.stop()
        await asyncio.sleep(random.uniform(0.1, 1.0))
        await self.start()

    async def stop(self) -> None:
        """Stop it; acknowledged writes are on disk."""
        assert self._process is not None, "it was started"
        self._process.terminate()
        await asyncio.to_thread(self._process.wait)


class Fleet:
    """`size` executors; they log to `executors.log` in `folder`."""

    def __init__(self, size: int, url: str, folder: Path) -> None:
        self.size = size
        self.members: list[subprocess.Popen[bytes]] = []
        self._folder = folder
        self._environ = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "REDIS_URL": url,
            "TOOLS_PATH": str(folder / "tools"),
            "SCHEDULE_MODE": "trigger,cron",
            "CONCURRENCY": "8",
            "JOURNAL_KEPT": "10000000",
            "RETRY_MAX_ATTEMPTS": str(MAX_ATTEMPTS),
            "RETRY_BACKOFF_MIN": "0.05",
            "RETRY_BACKOFF_MAX": "0.2",
            "TOOL_EXECUTION_TIMEOUT": "20",
            "SHUTDOWN_GRACE": "60",
            "HEALTH_PORT": "0",
        }

    def start(self) -> None:
        """Start all of them."""
        for _ in range(self.size):
            self._start_one()

    def pick(self) -> subprocess.Popen[bytes]:
        """A random running executor."""
        return random.choice(self.members)

    def check(self) -> None:
        """Raise RuntimeError if an executor has ended by itself."""
        codes = [code for member in self.members if (code := member.poll()) is not None]
        if codes:
            raise RuntimeError(f"an executor ended with exit code {codes[0]}, which nobody had asked for")

    def replace(self, member: subprocess.Popen[bytes]) -> None:
        """Start another executor in place of one that has ended."""
        self.members.remove(member)
        self._start_one()

    async def stop(self) -> int:
        """Stop all gracefully; returns the number of exit codes other than 0."""
        for member in self.members:
            member.send_signal(signal.SIGCONT)
            member.terminate()
        codes = [await asyncio.to_thread(_exit_code, member) for member in self.members]
        return sum(
            code not in (0, -signal.SIGTERM) for code in codes
        )  # it may have been stopped during its start

    def _start_one(self) -> None:
        command = [sys.executable, "-m", "services.executor.main"]
        with (self._folder / "executors.log").open("ab") as log:
            self.members.append(subprocess.Popen(command, cwd=self._folder, env=self._environ, stderr=log))


def _exit_code(member: subprocess.Popen[bytes]) -> int:
    try:
        return member.wait(PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        member.kill()
        return member.wait()


def adopt_orphans() -> None:
    """Make this process the parent of orphans below it, so that they can be counted."""
    pr_set_child_subreaper = 36
    ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1, 0, 0, 0)


def children() -> set[int]:
    """The child processes of this one, orphans included and zombies not."""
    tasks = Path("/proc/self/task").glob("*/children")
    return {int(pid) for task in tasks for pid in task.read_text().split() if _state(pid) not in "ZX"}


def _state(pid: str) -> str:
    """The state of a process as in proc(5); `X` if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"
