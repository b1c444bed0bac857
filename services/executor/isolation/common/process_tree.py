"""Process trees: who is below whom, and how to stop all of them before one can slip away."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from typing import Any

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
STOP_PATIENCE_SECONDS = 0.02
_SIGNAL_SET_BYTES = 128
_ACTION_BYTES = 256
_ANY_CHILD = os.WEXITED | os.WNOHANG | os.WNOWAIT

_libc = ctypes.CDLL(None, use_errno=True)
prctl, _waitid = _libc.prctl, _libc.waitid
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
# utime, stime, cutime and cstime of proc(5) in what `_stat` returns.
_CPU_FIELDS = slice(11, 15)
# Kernels built without CONFIG_PROC_CHILDREN lack these files.
_HAS_CHILDREN_FILES = os.path.exists(f"/proc/self/task/{os.getpid()}/children")


def adopt_orphans() -> None:
    """From now on, a process below this one whose parent dies becomes this process' child."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(number: int = int(signal.SIGKILL)) -> None:
    """From now on, the kernel sends this process a signal when its parent ends."""
    prctl(PR_SET_PDEATHSIG, number)


def descriptor_of_ends() -> int:
    """What can be read when a child has ended, once SIGCHLD is blocked; a handler would take longer."""
    mask = ctypes.create_string_buffer(_SIGNAL_SET_BYTES)
    _libc.sigemptyset(mask)
    _libc.sigaddset(mask, signal.SIGCHLD)
    descriptor = _libc.signalfd(-1, mask, os.O_NONBLOCK | os.O_CLOEXEC)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "signalfd")
    return int(descriptor)


def take_action(number: int) -> Any:
    """Have a signal do what it does by default; what it did until now, or None if that was the same.

    As the kernel has it: C code may have changed it, of which the module `signal` knows nothing.
    """
    before, default = (ctypes.create_string_buffer(_ACTION_BYTES) for _ in range(2))
    if _libc.sigaction(number, default, before):
        raise OSError(ctypes.get_errno(), "sigaction")
    return before if before.raw.strip(b"\0") else None


def put_action(number: int, action: Any) -> None:
    """Have a signal do again what `take_action` has found."""
    _libc.sigaction(number, action, None)


def has_children() -> bool:
    """Whether this process has any child, dead or alive, in one system call.

    Without Python's own function, whose exception for "no child", the usual answer, takes as long again.
    """
    return bool(_waitid(os.P_ALL, 0, None, _ANY_CHILD) == 0)


def children(pid: int) -> list[int]:
    """The processes started by any thread of `pid`, zombies included; none if it is gone."""
    if not _HAS_CHILDREN_FILES:
        return _children_by_parent(pid)
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        # A confined process sees itself in /proc and nobody else.
        return []
    return [child for task in tasks for child in _children_of_task(pid, task)]


def own_children() -> list[int]:
    """The processes started by this thread, zombies included: quicker to know than all of a process."""
    if not _HAS_CHILDREN_FILES:
        return _children_by_parent(os.getpid())
    return [int(text) for text in _read("/proc/thread-self/children").split()]


def _children_of_task(pid: int, task: str) -> list[int]:
    return [int(text) for text in _read(f"/proc/{pid}/task/{task}/children").split()]


def _children_by_parent(parent: int) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and _stat(int(entry))[1] == str(parent).encode():
            found.append(int(entry))
    return found


def _stat(pid: int) -> list[bytes]:
    """State, parent, ... of `pid` as in proc(5) from field 3 on; empty fields if it is gone."""
    return _read(f"/proc/{pid}/stat").rpartition(b")")[2].split() or [b"", b""]


def _read(path: str) -> bytes:
    """What a file of /proc says; nothing if its process is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
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
    """`root` and everything below it, as far as it can be seen while it lives on."""
    found: list[int] = []
    pending = [root]
    while pending:
        pid = pending.pop()
        if pid not in found:
            found.append(pid)
            pending.extend(children(pid))
    return found


def seen_from_outside(root: int, inner: int) -> int:
    """The id here of the process below `root` whose own namespace calls it `inner`; 0 if there is none."""
    for pid in below(root):
        for line in _read(f"/proc/{pid}/status").splitlines():
            if line.startswith(b"NSpid:") and line.split()[-1] == str(inner).encode():
                return pid
    return 0


def resident_bytes(pid: int) -> int:
    """The memory of a process that is in use; 0 if it is gone."""
    fields = _read(f"/proc/{pid}/statm").split()
    return int(fields[1]) * _PAGE_BYTES if fields else 0


def cpu_seconds(pid: int) -> float:
    """The CPU time that a process has used, and its children that it has buried; 0 if it is gone."""
    fields = _stat(pid)
    return sum(map(int, fields[_CPU_FIELDS])) / _TICKS_PER_SECOND


def freeze(root: int) -> list[int]:
    """Stop `root` and everything below it, and return all of them, the root first.

    A stopped process neither forks nor reaps, so once its stop has taken effect
    its list of children is final and none of their ids can be used again.
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
    give_up_at = time.monotonic() + STOP_PATIENCE_SECONDS
    while _stat(pid)[0] not in (b"T", b"t", b"Z", b"X", b"") and time.monotonic() < give_up_at:
        time.sleep(0)


def send(pid: int, number: int) -> bool:
    """Send a signal; False when there is no such process any more."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def terminate(root: int) -> None:
    """Ask every process of the tree to end."""
    frozen = freeze(root)
    for pid in frozen:
        send(pid, signal.SIGTERM)
    for pid in frozen:
        send(pid, signal.SIGCONT)


def kill(root: int) -> None:
    """End every process of the tree, now."""
    for pid in freeze(root):
        send(pid, signal.SIGKILL)


def kill_all() -> None:
    """End everything below this process at once and wait until nothing is left."""
    while True:
        for pid in children(os.getpid()):
            kill(pid)
        try:
            os.wait4(-1, 0)
        except ChildProcessError:
            return
