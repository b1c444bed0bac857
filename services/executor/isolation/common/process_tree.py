"""Process trees: finds, measures and ends all processes below another, before one can escape."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from typing import Any

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
STOP_SECONDS = 0.02

TRACKER_SECONDS = 1.0
"""A resource tracker has so long to remove what its processes have left, and to end by itself."""

_TRACKER = b"resource_tracker import main"
_POLL_SECONDS = 0.005
_SIGNAL_SET_BYTES = 128
_ACTION_BYTES = 256
WALL = 0x40000000
"""For waiting: also for children whose end sends another signal than SIGCHLD, or none."""
_ANY_CHILD = os.WEXITED | os.WNOHANG | os.WNOWAIT | WALL

_libc = ctypes.CDLL(None, use_errno=True)
prctl, _waitid = _libc.prctl, _libc.waitid
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
# utime, stime, cutime and cstime of proc(5), in what `_stat` returns.
_CPU_FIELDS = slice(11, 15)
# Kernels built without CONFIG_PROC_CHILDREN lack these files.
_HAS_CHILDREN_FILES = os.path.exists(f"/proc/self/task/{os.getpid()}/children")


def adopt_orphans() -> None:
    """From now on, processes below this one whose parent dies become children of this process."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(number: int = int(signal.SIGKILL)) -> None:
    """From now on, the kernel sends this process a signal when its parent ends."""
    prctl(PR_SET_PDEATHSIG, number)


def descriptor_of_ends() -> int:
    """A descriptor that can be read when a child has ended, if SIGCHLD is blocked.  Faster than a handler."""
    mask = ctypes.create_string_buffer(_SIGNAL_SET_BYTES)
    _libc.sigemptyset(mask)
    _libc.sigaddset(mask, signal.SIGCHLD)
    descriptor = _libc.signalfd(-1, mask, os.O_NONBLOCK | os.O_CLOEXEC)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "signalfd")
    return int(descriptor)


def take_action(number: int) -> Any:
    """Restore the default action of a signal; return the action it had, or None if it was the default.

    This is the kernel's action.  The module `signal` doesn't know what C code has set.
    """
    before, default = (ctypes.create_string_buffer(_ACTION_BYTES) for _ in range(2))
    if _libc.sigaction(number, default, before):
        raise OSError(ctypes.get_errno(), "sigaction")
    return before if before.raw.strip(b"\0") else None


def put_action(number: int, action: Any) -> None:
    """Give a signal the action again that `take_action` has returned."""
    _libc.sigaction(number, action, None)


def has_children() -> bool:
    """Whether this process has any child, dead or alive.

    By one system call.  The exception that Python's own function raises for "no child" takes as long again.
    """
    return bool(_waitid(os.P_ALL, 0, None, _ANY_CHILD) == 0)


def children(pid: int) -> list[int]:
    """The children of all threads of `pid`, zombies included; none if it is gone."""
    if not _HAS_CHILDREN_FILES:
        return _children_by_parent(pid)
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        # A confined process sees only itself in /proc.
        return []
    return [child for task in tasks for child in _children_of_task(pid, task)]


def own_children() -> list[int]:
    """The children of this thread, zombies included; faster than `children`."""
    if not _HAS_CHILDREN_FILES:
        return _children_by_parent(os.getpid())
    return [int(text) for text in read("/proc/thread-self/children").split()]


def _children_of_task(pid: int, task: str) -> list[int]:
    return [int(text) for text in read(f"/proc/{pid}/task/{task}/children").split()]


def _children_by_parent(parent: int) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and _stat(int(entry))[1] == str(parent).encode():
            found.append(int(entry))
    return found


def parent_of(pid: int) -> int | None:
    """The parent of a process, 0 if that is outside of what /proc shows; None if the process is gone.

    A process that is being reaped in this moment is dead (X), and the kernel shows 0 as its parent.
    """
    state, parent = _stat(pid)[:2]
    return int(parent) if parent and state != b"X" else None


def _stat(pid: int) -> list[bytes]:
    """The fields of proc(5) from the third on: state, parent, ...; empty if the process is gone."""
    return read(f"/proc/{pid}/stat").rpartition(b")")[2].split() or [b"", b""]


def read(path: str) -> bytes:
    """The content of a file in /proc; empty if its process is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""
    try:
        parts: list[bytes] = []
        while True:
            part = os.read(descriptor, 65_536)
            if not part:
                return b"".join(parts)
            parts.append(part)
    except ProcessLookupError:
        return b""
    finally:
        os.close(descriptor)


def below(root: int) -> list[int]:
    """`root` and all processes below it.  Those that start or end meanwhile may be missing."""
    found: list[int] = []
    pending = [root]
    while pending:
        pid = pending.pop()
        if pid not in found:
            found.append(pid)
            pending.extend(children(pid))
    return found


def seen_from_outside(root: int, inner: int) -> int:
    """The id of the process below `root` that has the id `inner` in its own namespace; 0 if there is none."""
    for pid in below(root):
        for line in read(f"/proc/{pid}/status").splitlines():
            if line.startswith(b"NSpid:") and line.split()[-1] == str(inner).encode():
                return pid
    return 0


def thread_count(pid: int) -> int:
    """The number of threads of a process.  OSError if it is gone."""
    return len(os.listdir(f"/proc/{pid}/task"))


def resident_bytes(pid: int) -> int:
    """The resident memory of a process; 0 if it is gone."""
    fields = read(f"/proc/{pid}/statm").split()
    return int(fields[1]) * _PAGE_BYTES if fields else 0


def cpu_seconds(pid: int) -> float:
    """The CPU time of a process and of the children that it has reaped; 0 if it is gone."""
    fields = _stat(pid)
    return sum(map(int, fields[_CPU_FIELDS])) / _TICKS_PER_SECOND


def freeze(root: int) -> list[int]:
    """Stop `root` and everything below it; return all of them, the root first.

    A stopped process neither forks nor reaps.  So once it has stopped, its list of children is final, and
    none of their ids can be used again.
    """
    found: list[int] = []
    pending = [root]
    while pending:
        pid = pending.pop()
        if pid in found or not send(pid, signal.SIGSTOP):
            continue
        _await_stop(pid)
        found.append(pid)
        pending.extend(children(pid))
    return found


def _await_stop(pid: int) -> None:
    give_up_at = time.monotonic() + STOP_SECONDS
    while _stat(pid)[0] not in (b"T", b"t", b"Z", b"X", b"") and time.monotonic() < give_up_at:
        time.sleep(0)


def send(pid: int, number: int) -> bool:
    """Send a signal; return False if there is no such process any more."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def terminate(root: int) -> None:
    """Send SIGTERM to all processes of the tree."""
    frozen = freeze(root)
    for pid in frozen:
        send(pid, signal.SIGTERM)
    for pid in frozen:
        send(pid, signal.SIGCONT)


def is_tracker(pid: int) -> bool:
    """Whether it looks like a resource tracker, which ends by itself once all that use it are gone."""
    return _TRACKER in read(f"/proc/{pid}/cmdline")


def kill(root: int, *, spares_trackers: bool = True) -> None:
    """Send SIGKILL to all processes of the tree, but maybe not to the resource trackers below its root."""
    for pid in freeze(root):
        is_spared = spares_trackers and pid != root and is_tracker(pid)
        send(pid, signal.SIGCONT if is_spared else signal.SIGKILL)


def kill_all() -> None:
    """Kill everything below this process, and wait until nothing is left; trackers have their time."""
    give_up_at = time.monotonic() + TRACKER_SECONDS
    while True:
        is_over = time.monotonic() >= give_up_at
        spared = [pid for pid in children(os.getpid()) if not is_over and is_tracker(pid)]
        for pid in children(os.getpid()):
            if pid not in spared:
                kill(pid, spares_trackers=not is_over)
        try:
            if os.wait4(-1, os.WNOHANG if spared else 0)[0] == 0:
                time.sleep(_POLL_SECONDS)
        except ChildProcessError:
            return
