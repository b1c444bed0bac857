"""Who executes a plan: one process at a time, and whether it still does."""

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

SILENT: Final = timedelta(seconds=15)
"""An owner elsewhere that has not been heard of for so long is gone."""


@dataclass(frozen=True, slots=True)
class Owner:
    """A process.

    Attributes:
        host: that it runs on, told from others of that name.
        pid: there.
        started: what the kernel says of its begin, so that a later process of the same pid is another.
    """

    host: str
    pid: int
    started: str

    @classmethod
    def myself(cls) -> Self:
        """This process."""
        return cls(_host(), os.getpid(), _started(os.getpid()))

    @property
    def is_here(self) -> bool:
        """Whether it can be looked at from here."""
        return self.host == _host()

    @property
    def is_gone(self) -> bool:
        """Whether it is known to have ended; of one that can't be looked at, it isn't."""
        return self.is_here and not self._runs()

    def is_alive(self, seen_at: datetime, now: datetime) -> bool:
        """Whether it still runs; of one that can't be looked at, whether it was heard of lately."""
        if self.is_here:
            return self._runs()
        return now - seen_at < SILENT

    def _runs(self) -> bool:
        return _started(self.pid) == self.started != ""

    def __str__(self) -> str:
        return f"process {self.pid}" + ("" if self.is_here else f" on {self.host.partition('/')[0]}")


@dataclass(frozen=True, slots=True)
class Session:
    """One time that the plan was taken up.

    Attributes:
        number: 1 for the first.
        owner: who executes it, or did.
        backend: where.
        cases: how many it set out to run.
        began_at, seen_at, ended_at: from when, when the owner was last heard of, to when.
        asked_to_end: why, by somebody else; None when nobody did.
        stopped: why it ended before all its cases had run, None when it didn't, or goes on.
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
        """The sitting that a row of the registry's `executions` describes."""
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
        """Whether its owner still executes it."""
        return self.ended_at is None and self.owner.is_alive(self.seen_at, now)


@contextlib.contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold the lock at `path`, which ends with the process, however it ends.

    Raises:
        PlanError: somebody else holds it; names who.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
            raise PlanError(
                f"{path.parent.name} is being executed by {holder}; `fullsend plan cancel` ends that"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _host() -> str:
    """This host, since when it is up, and which of its containers."""
    space = str(Path("/proc/self/ns/pid").readlink()).strip("pid:[]")
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # a container may hide it
        boot = ""
    return f"{socket.gethostname()}/{boot}/{space}"


def _started(pid: int) -> str:
    """When a process was started, in the kernel's own count; empty when there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
