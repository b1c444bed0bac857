"""Confines this process, for good, to what its tool may reach.

Applied in the forked process before the tool is imported.  The kernel enforces it for the process and for
everything that it starts.  There are three mechanisms, each for what the others can't do:

- capabilities are dropped, so that root is a user like any other;
- Landlock decides by path which files may be read and written, and separates processes;
- a filter of system calls (`seccomp`) refuses what gets around Landlock, and the network.

What remains possible: a tool can ask for names, sizes and modes of other files, but not for their contents
nor for listings.  Before version 6 of Landlock (Linux 6.12), it can send signals to other processes of the
same user.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
import struct
from typing import Any

from . import seccomp

_libc = ctypes.CDLL(None, use_errno=True)
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
_TCP_VERSION, _SCOPES_VERSION = 4, 6

READ = EXECUTE | READ_FILE | READ_DIR
WRITE = (
    READ_FILE | READ_DIR | WRITE_FILE | TRUNCATE | REMOVE_FILE | REMOVE_DIR | REFER
    | MAKE_REG | MAKE_DIR | MAKE_SYM | MAKE_FIFO
)  # fmt: skip
USE = READ_FILE | WRITE_FILE
_OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")

_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 24, 38, 47, 4
_CAPABILITIES_VERSION = 0x20080522
_MAX_CAPABILITIES = 64
_LEVELS = ("files", "files+network")


class NotConfined(Exception):
    """The process can't be confined, so no tool may be imported in it; says which step failed."""


def landlock_abi() -> int:
    """The version of Landlock that this kernel enforces; 0 if none."""
    number, size, flags = ctypes.c_long(_CREATE_RULESET), ctypes.c_size_t(0), ctypes.c_uint(_ASK_VERSION)
    return max(0, int(_libc.syscall(number, None, size, flags)))


def apply(spec: dict[str, Any]) -> None:
    """Confine this process as `spec` says (`Confinement.to_json`).  It can't be undone.

    Applied again, only what both allow remains.  The process must have a single thread.  Raises NotConfined,
    and then the process must not serve a tool.
    """
    if spec["level"] == "off":
        return
    if spec["level"] not in _LEVELS:
        raise NotConfined(f"no such level of confinement: {spec['level']!r}")
    try:
        _apply(spec["readable"], spec["writable"], spec["network"], spec["landlock_abi"])
    except OSError as error:
        raise NotConfined(f"the process can't be confined: {error}") from error


def _apply(readable: list[str], writable: list[str], network: bool, wanted_abi: int) -> None:
    threads = os.stat("/proc/self/task").st_nlink - 2
    if threads > 1:
        # Landlock confines the calling thread only.
        raise NotConfined(
            f"the process has {threads} threads already, but only one with a single thread can be confined"
        )
    abi = min(wanted_abi, landlock_abi())
    if wanted_abi and not abi:
        raise NotConfined("the kernel has no Landlock any more")
    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _drop_capabilities()
    if abi:
        _restrict(readable, writable, network, abi)
    if abi or seccomp.is_supported():
        seccomp.install(network=network, landlock_abi=abi)


# -- capabilities ----------------------------------------------------------------------


def _drop_capabilities() -> None:
    """Make root an ordinary user, even after an exec."""
    with contextlib.suppress(OSError):
        for capability in range(_MAX_CAPABILITIES):
            _call("prctl", _PR_CAPBSET_DROP, capability, 0, 0, 0)
    with contextlib.suppress(OSError):
        _call("prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    _call("capset", ctypes.c_char_p(struct.pack("=Ii", _CAPABILITIES_VERSION, 0)), ctypes.c_char_p(bytes(24)))


# -- Landlock --------------------------------------------------------------------------


def _restrict(readable: list[str], writable: list[str], network: bool, abi: int) -> None:
    """Allow these paths and no others, and no access to processes that this one has not started."""
    ruleset = _create_ruleset(network, abi)
    try:
        for path in readable:
            _allow(ruleset, path, READ, abi)
        for path in DEVICES:
            _allow(ruleset, path, USE, abi)
        for path in writable:
            _allow(ruleset, path, WRITE, abi, must_exist=True)
        _allow_own_process(ruleset, abi)
        _syscall(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint(0))
    finally:
        os.close(ruleset)


def _handled(abi: int) -> int:
    return (1 << _KNOWN_RIGHTS[min(abi, len(_KNOWN_RIGHTS)) - 1]) - 1


def _create_ruleset(network: bool, abi: int) -> int:
    """A struct landlock_ruleset_attr that refuses all rights `abi` knows unless a rule allows them."""
    attributes = struct.pack("=Q", _handled(abi))
    if abi >= _TCP_VERSION:
        attributes += struct.pack("=Q", 0 if network else _ALL_TCP)
    if abi >= _SCOPES_VERSION:
        attributes += struct.pack("=Q", _ALL_SCOPES)
    size = ctypes.c_size_t(len(attributes))
    return _syscall(_CREATE_RULESET, ctypes.c_char_p(attributes), size, ctypes.c_uint(0))


def _allow(ruleset: int, path: str, rights: int, abi: int, *, must_exist: bool = False) -> None:
    """Allow `rights` on a file, or on a directory and everything below it."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        if must_exist:
            raise
        return
    try:
        _add_rule(ruleset, descriptor, rights, abi)
    finally:
        os.close(descriptor)


def _add_rule(ruleset: int, descriptor: int, rights: int, abi: int) -> None:
    rights &= _handled(abi)
    if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
        rights &= _OF_FILES
    # struct landlock_path_beneath_attr, which is packed.
    rule = ctypes.c_char_p(struct.pack("=Qi", rights, descriptor))
    _syscall(_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(_PATH_BENEATH), rule, ctypes.c_uint(0))


def _allow_own_process(ruleset: int, abi: int) -> None:
    """Allow reading the entry of /proc for this process, but not for its parent nor its children.

    The descriptor stays open.  A rule belongs to the entry's inode, and /proc makes new inodes once nobody
    holds the old ones.
    """
    try:
        descriptor = os.open(f"/proc/{os.getpid()}", os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    _add_rule(ruleset, descriptor, READ_FILE | READ_DIR, abi)


# -- calling the kernel ----------------------------------------------------------------


def _syscall(number: int, *arguments: Any) -> int:
    return _call("syscall", ctypes.c_long(number), *arguments)


def _call(function: str, *arguments: Any) -> int:
    """Call a function of the C library.  If it fails, the OSError names it."""
    result: int = getattr(_libc, function)(*arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{_named(function, arguments)}: {os.strerror(code)}")
    return result


def _named(function: str, arguments: tuple[Any, ...]) -> str:
    names = {_CREATE_RULESET: "landlock_create_ruleset", _ADD_RULE: "landlock_add_rule"}
    if function != "syscall":
        return function
    return names.get(arguments[0].value, "landlock_restrict_self")
