"""Finds, measures and ends the processes of a service."""

import contextlib
import os
import signal
import time
from collections.abc import Collection, Iterable
from pathlib import Path

PROC = Path("/proc")
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
LOOK_SECONDS = 0.01
END_SECONDS = 10.0


def descendants(roots: Iterable[int]) -> set[int]:
    """The processes `roots` and all below them, without zombies."""
    found: set[int] = set()
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        if pid not in found and _state(pid) not in "ZX":
            found.add(pid)
            waiting += _children(pid)
    return found


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):  # it has just ended
        for task in PROC.joinpath(str(pid), "task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += map(int, task.read_text().split())
    return found


def _state(pid: int) -> str:
    """The state as in proc(5); `X` if the process is gone."""
    return _stat(pid)[0]


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["X", *["0"] * 20]


def tagged(tag: str, pids: Iterable[int]) -> set[int]:
    """The processes with `tag` in their environment, whoever their parent is."""
    wanted = tag.encode()
    found = set()
    for pid in pids:
        try:
            if wanted in (PROC / str(pid) / "environ").read_bytes():
                found.add(pid)
        except OSError:
            continue
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU time of the processes so far, and of their children that have ended."""
    return sum(sum(map(int, _stat(pid)[11:15])) for pid in pids) / TICKS_PER_SECOND


def pss_bytes(pids: Iterable[int]) -> int:
    """The sum of the processes' proportional set sizes, which counts shared pages once."""
    return sum(_pss_bytes(pid) for pid in pids)


def _pss_bytes(pid: int) -> int:
    try:
        lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def kill(pids: Collection[int]) -> None:
    """Send SIGKILL to all processes as if at the same moment; processes that have ended are ignored.

    They are stopped first.  Otherwise a parent could see the end of its child and report the job as
    crashed, although the job was lost with the whole service.
    """
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def until_gone(pids: set[int]) -> None:
    """Wait until the processes have ended."""
    until = time.monotonic() + END_SECONDS
    while any(_state(pid) not in "ZX" for pid in pids):
        if time.monotonic() > until:
            raise RuntimeError(f"processes that did not end after SIGKILL: {sorted(pids)}")
        time.sleep(LOOK_SECONDS)
