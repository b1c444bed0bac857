"""Calls of the C library that raise OSError, named after what failed."""

from __future__ import annotations

import ctypes
import os
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)

PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 4, 38


def call(function: str, *arguments: Any, name: str = "") -> int:
    """Call a function of the C library.  If it fails, the OSError has `name`, by default the function's."""
    result: int = getattr(_libc, function)(*arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name or function}: {os.strerror(code)}")
    return result


def syscall(name: str, number: int, *arguments: Any) -> int:
    """Make a system call that the C library may lack."""
    return call("syscall", ctypes.c_long(number), *arguments, name=name)


def set_dumpable(is_dumpable: bool) -> None:
    """Whether processes of the same user may look at this process' memory, environment and open files.

    Forks inherit it.  A process with CAP_SYS_PTRACE may look in any case.
    """
    call("prctl", PR_SET_DUMPABLE, int(is_dumpable), 0, 0, 0)


def forbid_new_privileges() -> None:
    """From now on, no exec gives this process more rights: setuid programs run with those of their caller."""
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
