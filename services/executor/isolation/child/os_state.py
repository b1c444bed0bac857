"""What the kernel and the C library keep for a process, and a run may have changed behind Python's back."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from typing import Any

_knows_resource = "resource" in sys.modules
import resource as resource  # noqa: E402 - it matters who was first

if not _knows_resource:
    # So that its presence tells whether a tool can have changed a limit: to look at all of them takes
    # longer than any other part of a reset.
    del sys.modules["resource"]

_LIMITS = sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")})
_POINTER_BYTES = ctypes.sizeof(ctypes.c_void_p)
_libc = ctypes.CDLL(None)
_environ = ctypes.c_void_p.in_dll(_libc, "environ")


class Standing:
    """Priority, processors, limits and the C library's environment, as they were when this was made."""

    def __init__(self) -> None:
        self._nice = os.getpriority(os.PRIO_PROCESS, 0)
        self._cpus = os.sched_getaffinity(0)
        self._limits = list(map(resource.getrlimit, _LIMITS))
        self._variables = _variables()
        self._remember_environ()

    def restore(self) -> None:
        """Undo what a run has changed; OSError or ValueError where this process may not."""
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

    def _restore_environ(self) -> None:
        """Undo what `os.putenv`, or C code, has done: `os.environ` doesn't know of it."""
        now = _variables()
        for name in now.keys() - self._variables.keys():
            os.unsetenv(name)
        for name, value in self._variables.items():
            if now.get(name) != value:
                os.putenv(name, value)
        self._remember_environ()

    def _remember_environ(self) -> None:
        """Keep the pointers to the variables: as long as they are the same, so are the variables."""
        size = _POINTER_BYTES * (len(_entries()) + 1)
        self._environ_at = _environ.value
        self._environ_now = (ctypes.c_char * (size if self._environ_at else 0)).from_address(
            _environ.value or 0
        )
        self._pointers = self._environ_now.raw


class Descriptors:
    """The open files of this process, as they were when this was made."""

    def __init__(self) -> None:
        self._folder = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._count = self._counted()
        self._known = _descriptors()

    def left_behind(self) -> list[int]:
        """Those that a run has opened and not closed again."""
        if self._counted() == self._count:
            return []
        gc.collect()
        now = _descriptors()
        left = sorted(now - self._known)
        if not left:
            # Some that the import had left open may have been closed.
            self._known, self._count = now, self._counted()
        return left

    def _counted(self) -> int:
        """How many there are; kernels before 6.2 don't say."""
        return os.fstat(self._folder).st_size or len(os.listdir("/proc/self/fd"))


def peak_bytes() -> int:
    """The most memory that this process ever had in use."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _descriptors() -> set[int]:
    found = {int(name) for name in os.listdir("/proc/self/fd")}
    return {descriptor for descriptor in found if os.path.lexists(f"/proc/self/fd/{descriptor}")}


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
