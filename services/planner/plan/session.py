"""Sessions: which process executes a plan, whether it still lives, and the lock that keeps others out."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, Self

from shared.errors import PlanError

HEARTBEAT_TIMEOUT: Final = timedelta(seconds=15)
"""A process on another host counts as gone after so long without a heartbeat."""


@dataclass(frozen=True, slots=True)
class Owner:
    """The process that executes a plan.

    Attributes:
        host: host name, boot id and pid namespace, so that equal pids of two containers differ.
        pid: its process id there.
        started: when the kernel started it, so that a later process of the same pid differs.
    """

    host: str
    pid: int
    started: str

    @classmethod
    def myself(cls) -> Self:
        """Return this process."""
        return cls(_host(), os.getpid(), _started(os.getpid()))

    @property
    def is_here(self) -> bool:
        """Whether it runs on this host, in this container, so that its state can be read."""
        return self.host == _host()

    @property
    def is_gone(self) -> bool:
        """Whether it is known to have ended; False for a process on another host."""
        return self.is_here and not self._runs()

    def is_alive(self, seen_at: datetime, now: datetime) -> bool:
        """Return whether it runs; for a process on another host, whether its heartbeat is recent."""
        if self.is_here:
            return self._runs()
        return now - seen_at < HEARTBEAT_TIMEOUT

    def _runs(self) -> bool:
        return _started(self.pid) == self.started != ""

    def __str__(self) -> str:
        return f"process {self.pid}" + ("" if self.is_here else f" on {self.host.partition('/')[0]}")


@dataclass(frozen=True, slots=True)
class Session:
    """One time that a process executes a plan.

    Attributes:
        number: counts from 1.
        owner: the process.
        backend: the name of the backend.
        cases: how many cases were to be run.
        began_at, seen_at, ended_at: its start, its last heartbeat, its end; None while it is open.
        asked_to_end: the reason that another process gave to stop it; None if none did.
        stopped: why it ended before all its cases had run; None if it didn't, or is open.
    """

    number: int
    owner: Owner
    backend: str
    cases: int
    began_at: datetime
    seen_at: datetime
    ended_at: datetime | None
    asked_to_end: str | None
    stopped: str | None

    @classmethod
    def of_row(cls, row: Sequence[Any]) -> Self:
        """Return the session of a row of the registry's table `executions`."""
        number, host, pid, started, backend, cases, began_at, seen_at, ended_at, asked, stopped = row
        return cls(
            number=number,
            owner=Owner(host, pid, started),
            backend=backend,
            cases=cases,
            began_at=datetime.fromisoformat(began_at),
            seen_at=datetime.fromisoformat(seen_at),
            ended_at=datetime.fromisoformat(ended_at) if ended_at else None,
            asked_to_end=asked,
            stopped=stopped,
        )

    def is_under_way(self, now: datetime) -> bool:
        """Return whether its process still executes the plan."""
        return self.ended_at is None and self.owner.is_alive(self.seen_at, now)


@contextlib.contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold the lock file at `path` inside the block; the kernel releases it when the process ends.

    Raises:
        PlanError: another process holds it; names the process.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
            raise PlanError(
                f"{path.parent.name} is being executed by {holder}; `fullsend plan cancel` stops it"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _host() -> str:
    """Return host name, boot id and pid namespace."""
    space = str(Path("/proc/self/ns/pid").readlink()).strip("pid:[]")
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # a container may hide it
        boot = ""
    return f"{socket.gethostname()}/{boot}/{space}"


def _started(pid: int) -> str:
    """Return the start time of a process in clock ticks since boot; empty if it doesn't run."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
