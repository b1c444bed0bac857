"""What the kernel and the C library keep for a process: priority, limits, environment, open files, streams.

A run may change all of it without Python's knowledge, and a fork takes its own in place of its parent's.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import contextlib
import ctypes
import fcntl
import gc
import io
import math
import operator
import os
import sys
from time import process_time as _process_time  # before a tool can replace it
from typing import Any, Iterable, Iterator, Sequence

from ..common import kernel, process_tree
from .channel import Channel

_knows_resource = "resource" in sys.modules
import resource  # noqa: E402 - the line above must come first

if not _knows_resource:
    # So that its presence tells whether a tool can have changed a limit.  Reading all limits takes longer
    # than any other part of a reset.
    del sys.modules["resource"]

_LIMITS = sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")})
_POINTER_BYTES = ctypes.sizeof(ctypes.c_void_p)
_libc = ctypes.CDLL(None)
_environ = ctypes.c_void_p.in_dll(_libc, "environ")


class KernelState:
    """Priority, processors, limits and the C library's environment, as they were when this was made."""

    def __init__(self, *, may_change_user: bool) -> None:
        self._nice = os.getpriority(os.PRIO_PROCESS, 0)
        self._cpus = os.sched_getaffinity(0)
        self._class = os.sched_getscheduler(0)
        self._users = _users() if may_change_user else None
        self._user = os.getuid()
        self._oom = _of_process("oom_score_adj")
        self._oom_score = _content(self._oom)
        self._timers = _of_process("timers")
        self._limits = list(map(resource.getrlimit, _LIMITS))
        self._variables = _variables()
        self._remember_environ()

    def restore(self) -> None:
        """Undo what a run has changed.  OSError or ValueError if this process may not."""
        process_tree.adopt_orphans()
        process_tree.prctl(kernel.PR_SET_DUMPABLE, 1, 0, 0, 0)
        if self._users is not None and _users() != self._users:
            raise PermissionError("the run changed its user or its groups")
        if os.getuid() != self._user:  # which any process may do
            raise PermissionError("the run entered another namespace of users")
        if os.sched_getscheduler(0) != self._class:
            os.sched_setscheduler(0, self._class, os.sched_param(0))
        if _content(self._oom) != self._oom_score:
            with open("/proc/self/oom_score_adj", "wb") as file:
                file.write(self._oom_score)
        if os.getpriority(os.PRIO_PROCESS, 0) != self._nice:
            os.setpriority(os.PRIO_PROCESS, 0, self._nice)
        if os.sched_getaffinity(0) != self._cpus:
            os.sched_setaffinity(0, self._cpus)
        if "resource" in sys.modules:
            for kind, before in zip(_LIMITS, self._limits):  # noqa: B905 - strict= needs Python 3.10
                if resource.getrlimit(kind) != before:
                    resource.setrlimit(kind, before)
        if _environ.value != self._environ_at or self._environ_now.raw != self._pointers:
            self._restore_environ()

    def timers(self) -> str:
        """Why the process must not go on: a timer that C code has set would end the next run."""
        return "the run left a timer behind" if _content(self._timers) else ""

    def _restore_environ(self) -> None:
        """Undo what `os.putenv`, or C code, has done: `os.environ` doesn't know about it."""
        now = _variables()
        for name in now.keys() - self._variables.keys():
            os.unsetenv(name)
        for name, value in self._variables.items():
            if now.get(name) != value:
                os.putenv(name, value)
        self._remember_environ()

    def _remember_environ(self) -> None:
        """Keep the pointers to the variables: while they are the same, so are the variables."""
        size = _POINTER_BYTES * (len(_entries()) + 1)
        self._environ_at = _environ.value
        self._environ_now = (ctypes.c_char * (size if self._environ_at else 0)).from_address(
            _environ.value or 0
        )
        self._pointers = self._environ_now.raw


def _users() -> tuple[object, ...]:
    return os.getresuid(), os.getresgid(), os.getgroups()


def _of_process(name: str) -> int:
    """A file in /proc about this process, or -1 if the kernel has no such file.  It stays open."""
    try:
        return os.open(f"/proc/self/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1


def _content(descriptor: int) -> bytes:
    return os.pread(descriptor, 100, 0) if descriptor >= 0 else b""


def _entries() -> list[bytes]:
    """The environment as C code sees it."""
    array: Any = ctypes.cast(_environ, ctypes.POINTER(ctypes.c_char_p))
    entries: list[bytes] = []
    while array and array[len(entries)] is not None:
        entries.append(array[len(entries)])
    return entries


def _variables() -> dict[bytes, bytes]:
    pairs = [entry.partition(b"=") for entry in _entries()]
    return {name: value for name, sign, value in pairs if name and sign}


def peak_bytes() -> int:
    """The most memory that this process ever had in use."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Meter:
    """Measures what runs use, one after the other; reading the kernel's counts takes a microsecond each."""

    def __init__(self) -> None:
        self._before = self._children_before = 0.0

    def begin(self) -> None:
        """Begin a run."""
        self._before = _process_time()

    def used(self) -> tuple[float, int]:
        """The CPU seconds of the run, with those of children that have ended, and `peak_bytes`."""
        own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        children_seconds = children.ru_utime + children.ru_stime
        cpu_seconds = own.ru_utime + own.ru_stime - self._before + children_seconds - self._children_before
        self._children_before = children_seconds
        return max(0.0, cpu_seconds), own.ru_maxrss * 1024


# -- open files -----------------------------------------------------------------------


class OpenFiles:
    """The open files of this process, as they were when this was made.

    `kernel_counts` is whether the kernel tells how many there are, as it does from 6.2 on.
    """

    def __init__(self, kernel_counts: bool = True) -> None:
        self._kernel_counts = kernel_counts
        self._folder = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._count = self._counted()
        self._known = _descriptors()

    def left_behind(self) -> list[int]:
        """The descriptors that a run has opened and not closed."""
        if self._counted() == self._count:
            return []
        gc.collect()
        now = _descriptors()
        left = sorted(now - self._known)
        if not left:
            # Some that the import had left open may have been closed.
            self._known, self._count = now, self._counted()
        return left

    def close(self) -> None:
        """Look no more."""
        os.close(self._folder)

    def _counted(self) -> int:
        count = os.fstat(self._folder).st_size if self._kernel_counts else 0
        return count or len(os.listdir("/proc/self/fd"))


def _descriptors() -> set[int]:
    found = {int(name) for name in os.listdir("/proc/self/fd")}
    return {descriptor for descriptor in found if os.path.lexists(f"/proc/self/fd/{descriptor}")}


# -- standard streams -----------------------------------------------------------------

_STREAMS = ("stdin", "stdout", "stderr")
_SETTINGS = ("encoding", "errors", "line_buffering", "write_through")
_of_stream = operator.attrgetter("closed", *_SETTINGS)
_MARKS = {0: 40, 1: 41, 2: 42}


def writer(descriptor: int) -> Any:
    """A line-buffered text stream, so that a run's log can be followed while it runs."""
    return open(descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


class StandardStreams:
    """Standard input, output and error, as they were when this was made.

    A mark tells which open file is behind a descriptor: the signal that the kernel would send when that
    file becomes ready, if anybody had requested it.  Nobody does, the mark stays with the open file, and it
    is read in a fifth of the time that `fstat` takes.
    """

    def __init__(self) -> None:
        self._open = [descriptor for descriptor, mark in _MARKS.items() if _set_mark(descriptor, mark)]
        self._commands = [fcntl.F_GETSIG] * len(self._open)
        self._marks = list(map(fcntl.fcntl, self._open, self._commands))
        self._streams = [getattr(sys, name) for name in _STREAMS if _is_pythons(getattr(sys, name))]
        self._settings = list(map(_of_stream, self._streams))

    def restore(self) -> str:
        """Undo what a run has changed; return why that is impossible, if it is."""
        if list(map(fcntl.fcntl, self._open, self._commands)) != self._marks:
            return "the run redirected its standard input, output or error"
        if list(map(_of_stream, self._streams)) != self._settings:
            return self._reconfigure()
        return ""

    def _reconfigure(self) -> str:
        """Keep the same objects, because handlers of `logging` that the import made refer to them."""
        for stream, before in zip(self._streams, self._settings):  # noqa: B905 - strict= needs Python 3.10
            if stream.closed:
                return f"the run closed {stream.name}"
            stream.reconfigure(**dict(zip(_SETTINGS, before[1:])))  # noqa: B905 - as above
        return ""


def _set_mark(descriptor: int, mark: int) -> bool:
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, mark)
    except OSError:
        return False
    return True


def _is_pythons(stream: Any) -> bool:
    """Whether it is a stream of Python's, and not an object that the tool has put in its place."""
    return isinstance(stream, io.TextIOWrapper) and not stream.closed


# -- the limits of one run ------------------------------------------------------------


@contextlib.contextmanager
def limited(limits: dict[str, Any]) -> Iterator[None]:
    """Set the limits that the kernel keeps for each process, and restore them after the run.

    Only soft limits: a hard limit that was lowered could not be raised again for the next run.  Processes
    that the tool starts inherit them.  The executor watches memory and the number of processes.
    """
    before = {}
    for kind, soft in _soft_limits(limits).items():
        before[kind] = resource.getrlimit(kind)
        hard = before[kind][1]
        resource.setrlimit(kind, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
    try:
        yield
    finally:
        for kind, pair in before.items():
            # Impossible after a run that lowered a hard limit, and then the process is given up.
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(kind, pair)


def _soft_limits(limits: dict[str, Any]) -> dict[int, int]:
    wanted = {}
    if limits.get("cpu_seconds") is not None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        wanted[resource.RLIMIT_CPU] = math.ceil(usage.ru_utime + usage.ru_stime + limits["cpu_seconds"])
    if limits.get("file_size_bytes") is not None:
        wanted[resource.RLIMIT_FSIZE] = limits["file_size_bytes"]
    if limits.get("open_files") is not None:
        wanted[resource.RLIMIT_NOFILE] = limits["open_files"]
    return wanted


_SIGCHLD = (_signal.SIGCHLD,)


def restore_sigchld(before: tuple[bool, Any]) -> None:
    """Have SIGCHLD as it was before the parent began to fork: whether it was blocked, and its action."""
    is_blocked, action = before
    if action is not None:
        process_tree.put_action(_signal.SIGCHLD, action)
    if not is_blocked:
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, _SIGCHLD)


def take_over(
    parent: int,
    channel: Channel,
    targets: Sequence[int],
    given: Sequence[int],
    others: Sequence[tuple[int, int]],
) -> None:
    """End together with the parent, and replace its descriptors by those that were given.

    These get the parent's numbers, so that every object that knows the numbers stays as it is.  All in one
    function, because each function that a fork calls is two pages to be copied.  It uses the C functions of
    `signal`, whose enumerations touch 80 pages.

    Args:
        parent: its process id.
        channel: the parent's channel, which becomes this process' own.
        targets: the descriptors of stdout, stderr and the stacks.
        given: the descriptors of the socket, stdout, stderr and the stacks.
        others: ranges of descriptors to close.
    """
    process_tree.prctl(process_tree.PR_SET_PDEATHSIG, _signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    process_tree.prctl(process_tree.PR_SET_CHILD_SUBREAPER, 1)
    sock, out, err, stacks = given
    os.dup2(sock, channel.descriptor, False)
    for descriptor, target in ((out, targets[0]), (err, targets[1])):
        if descriptor == target:  # the import had closed it, and it was the next free number
            os.set_inheritable(target, True)
        else:
            os.dup2(descriptor, target)
    if stacks != targets[2]:
        os.dup2(stacks, targets[2], False)
    for low, high in others:
        os.closerange(low, high)
    channel.start_over()


def ranges(descriptors: Iterable[int]) -> list[tuple[int, int]]:
    """The same descriptors as ranges, for `os.closerange`."""
    found: list[tuple[int, int]] = []
    for descriptor in sorted(descriptors):
        if found and found[-1][1] == descriptor:
            found[-1] = (found[-1][0], descriptor + 1)
        else:
            found.append((descriptor, descriptor + 1))
    return found
