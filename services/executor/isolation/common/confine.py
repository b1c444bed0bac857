"""Confines this process, for good, to what its tool may reach.

Applied in the forked process before the tool is imported.  The kernel enforces it for the process and for
everything that it starts.  There are three mechanisms, each for what the others can't do:

- capabilities are dropped, so that root is a user like any other;
- Landlock separates processes, and decides by path which files may be read and written;
- a filter of system calls (`seccomp`) refuses what gets around Landlock, and the network.

At level `process`, only processes are separated: files and the network are those of the service's user, and
the filter refuses only what changes the limits or the scheduling of other processes.

At the other levels, what remains possible: a tool can ask for names, sizes and modes of other files, but not
for their contents nor for listings.  Before version 6 of Landlock (Linux 6.12), tools of all levels can send
signals to other processes of the same user.
"""

from __future__ import annotations

import os
from typing import Any

from . import capabilities, kernel, landlock, seccomp
from .landlock import EXECUTE, READ_DIR, READ_FILE, REFER, TRUNCATE, WRITE_FILE, Ruleset

READ = EXECUTE | READ_FILE | READ_DIR
WRITE = (
    READ_FILE | READ_DIR | WRITE_FILE | TRUNCATE | landlock.REMOVE_FILE | landlock.REMOVE_DIR | REFER
    | landlock.MAKE_REG | landlock.MAKE_DIR | landlock.MAKE_SYM | landlock.MAKE_FIFO
)  # fmt: skip
USE = READ_FILE | WRITE_FILE
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")

PROCESS = "process"
_LEVELS = (PROCESS, "files", "files+network")


class NotConfined(Exception):
    """The process can't be confined, so no tool may be imported in it; says which step failed."""


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
        _apply(spec)
    except OSError as error:
        raise NotConfined(f"the process can't be confined: {error}") from error


def _apply(spec: dict[str, Any]) -> None:
    threads = os.stat("/proc/self/task").st_nlink - 2
    if threads > 1:
        # Landlock confines the calling thread only.
        raise NotConfined(
            f"the process has {threads} threads already, but only one with a single thread can be confined"
        )
    abi = min(spec["landlock_abi"], landlock.version())
    if spec["landlock_abi"] and not abi:
        raise NotConfined("the kernel has no Landlock any more")
    kernel.forbid_new_privileges()
    capabilities.keep_only(spec["capabilities"])
    if spec["level"] == PROCESS:
        rules = separating(spec)
        if rules is not None:
            rules.enter()
            rules.close()
        if seccomp.is_supported():
            seccomp.install_separation()
        return
    if abi:
        _restrict(spec["readable"], spec["writable"], spec["network"], abi)
    if abi or seccomp.is_supported():
        pretends = bool(spec.get("pretends"))
        seccomp.install(network=spec["network"], landlock_abi=abi, pretends=pretends)


def separating(spec: dict[str, Any]) -> Ruleset | None:
    """The rules of level `process`, to be entered; None at another level, or if the kernel lacks them."""
    if spec["level"] != PROCESS or not spec["landlock_abi"]:
        return None
    rules = Ruleset(min(spec["landlock_abi"], landlock.version()), handled=REFER)
    rules.allow("/", REFER, must_exist=True)
    return rules


def _restrict(readable: list[str], writable: list[str], network: bool, abi: int) -> None:
    """Allow these paths and no others, and no access to processes that this one has not started."""
    rules = Ruleset(abi, network=network)
    try:
        for path in readable:
            rules.allow(path, READ)
        for path in DEVICES:
            rules.allow(path, USE)
        for path in writable:
            rules.allow(path, WRITE, must_exist=True)
        _allow_own_process(rules)
        rules.enter()
    finally:
        rules.close()


def _allow_own_process(rules: Ruleset) -> None:
    """Allow reading the entry of /proc for this process, but not for its parent nor its children.

    The descriptor stays open.  A rule belongs to the entry's inode, and /proc makes new inodes once nobody
    holds the old ones.
    """
    try:
        descriptor = os.open(f"/proc/{os.getpid()}", os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    rules.allow_open(descriptor, READ_FILE | READ_DIR)
