"""Landlock: rules that a process puts on itself and on all that it starts, as in landlock(7).

A process that enters a *domain* reaches no process outside of it: not its memory, nor its environment, nor
its open files, and from version 6 of Landlock (Linux 6.12) on neither by a signal nor by an abstract socket.
That holds for every domain, whatever files its rules allow.  Domains can be nested, sixteen at most.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from typing import Optional

from . import kernel

# The same numbers on every machine.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION, _PATH_BENEATH = 1, 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REMOVE_DIR, REMOVE_FILE = 1 << 4, 1 << 5
MAKE_CHAR, MAKE_DIR, MAKE_REG, MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM = (1 << bit for bit in range(6, 13))
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
# The number of the rights above that each version knows; the last one holds for all later versions.
_KNOWN_RIGHTS = (13, 14, 15, 15, 16)
_ALL_TCP, _ALL_SCOPES = 0b11, 0b11
_TCP_VERSION, SCOPES_VERSION = 4, 6
REFER_VERSION = 2
"""In a domain of an earlier version, nothing can be renamed or linked into another directory."""

_OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV

_libc = ctypes.CDLL(None, use_errno=True)


def version() -> int:
    """The version of Landlock that this kernel enforces; 0 if none."""
    number, size, flags = ctypes.c_long(_CREATE_RULESET), ctypes.c_size_t(0), ctypes.c_uint(_ASK_VERSION)
    return max(0, int(_libc.syscall(number, None, size, flags)))


class Ruleset:
    """Rules for a domain, which refuse everything that they handle and nothing allows.

    Args:
        abi: the version of Landlock to use.
        handled: the rights over files that are refused unless a rule allows them; by default, all of `abi`.
        network: whether TCP is allowed.

    All of it raises OSError if the kernel refuses.
    """

    def __init__(self, abi: int, *, handled: Optional[int] = None, network: bool = True) -> None:
        self._known = (1 << _KNOWN_RIGHTS[min(abi, len(_KNOWN_RIGHTS)) - 1]) - 1
        self._handled = self._known if handled is None else handled
        # struct landlock_ruleset_attr
        attributes = struct.pack("=Q", self._handled)
        if abi >= _TCP_VERSION:
            attributes += struct.pack("=Q", 0 if network else _ALL_TCP)
        if abi >= SCOPES_VERSION:
            attributes += struct.pack("=Q", _ALL_SCOPES)
        size = ctypes.c_size_t(len(attributes))
        self._descriptor = kernel.syscall(
            "landlock_create_ruleset", _CREATE_RULESET, ctypes.c_char_p(attributes), size, ctypes.c_uint(0)
        )

    def allow(self, path: str, rights: int, *, must_exist: bool = False) -> None:
        """Allow `rights` on a file, or on a directory and everything below it."""
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            if must_exist:
                raise
            return
        try:
            self.allow_open(descriptor, rights)
        finally:
            os.close(descriptor)

    def allow_open(self, descriptor: int, rights: int) -> None:
        """Allow `rights` on what is open as `descriptor`."""
        rights &= self._handled
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _OF_FILES
        # struct landlock_path_beneath_attr, which is packed.
        rule = ctypes.c_char_p(struct.pack("=Qi", rights, descriptor))
        arguments = ctypes.c_int(self._descriptor), ctypes.c_int(_PATH_BENEATH), rule, ctypes.c_uint(0)
        kernel.syscall("landlock_add_rule", _ADD_RULE, *arguments)

    def enter(self) -> None:
        """Enter a new domain with these rules, for good.  The process must have a single thread.

        May be repeated in forks, each of which then has a domain of its own.
        """
        # As short as can be, because a fork copies each page that it touches here.
        if _libc.syscall(_RESTRICT_SELF, self._descriptor, 0):
            code = ctypes.get_errno()
            raise OSError(code, f"landlock_restrict_self: {os.strerror(code)}")

    def close(self) -> None:
        """Release the rules; a domain that was entered stays."""
        os.close(self._descriptor)
