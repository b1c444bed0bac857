"""The processes that this one forked: it starts them, ends their trees and says how they ended.

Whoever forked a process is the only one who may signal it: until its owner has
reaped it, its process id can't belong to anybody else.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import fcntl
import os
import time
from typing import Any

from . import tree

STACKS_SIGNAL = 63
STACKS_SECONDS = 0.15
STACKS_SETTLE_SECONDS = 0.01
KILL_AGAIN_SECONDS = 0.1


class Child:
    """A forked process: what the executor calls it, where its stacks go, and how far its end has come."""

    def __init__(self, token: int, stacks: int) -> None:
        self.token = token
        self.stacks = stacks
        self.step = ""
        self.next_at = 0.0
        self.grace_seconds = 0.0
        self.stacks_deadline = 0.0
        self.stacks_bytes = 0


class Owner:
    """Keeps the children of this process and answers for them."""

    def __init__(self) -> None:
        self.children: dict[int, Child] = {}
        self.wake, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._previous_handler = _signal.signal(_signal.SIGCHLD, lambda *_: None)
        self._previous_wakeup = _signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        # The import of a tool may have blocked the signal, without which nobody's end would be noticed.
        self._previous_mask = _signal.pthread_sigmask(_signal.SIG_UNBLOCK, (_signal.SIGCHLD,))
        tree.adopt_orphans()

    def fork(self, token: int, stacks: int) -> int:
        """Fork; 0 in the child, which has forgotten everything that its parent owns."""
        parent = os.getpid()
        pid = os.fork()
        if pid:
            self.children[pid] = Child(token, stacks)
            return pid
        self._forget()
        os.setsid()
        tree.die_with_parent()
        if os.getppid() != parent:
            os._exit(1)
        tree.adopt_orphans()
        return 0

    def _forget(self) -> None:
        # The C functions: the enumerations of `signal` touch 80 pages, each of which the fork would copy.
        _signal.set_wakeup_fd(self._previous_wakeup)
        _signal.signal(_signal.SIGCHLD, self._previous_handler)
        if _signal.SIGCHLD in self._previous_mask:
            _signal.pthread_sigmask(_signal.SIG_SETMASK, self._previous_mask)
        os.close(self.wake)
        os.close(self._wake_write)
        for child in self.children.values():
            os.close(child.stacks)

    # -- ending ------------------------------------------------------------------------

    def end(self, token: int, grace_seconds: float, stacks: bool) -> None:
        """Begin to end the tree of a child; `reap` tells when it is over."""
        found = [(pid, child) for pid, child in self.children.items() if child.token == token]
        if not found:
            return
        pid, child = found[0]
        child.grace_seconds = min(child.grace_seconds, grace_seconds) if child.step else grace_seconds
        if stacks and not child.step:
            now = time.monotonic()
            child.step = "stacks"
            child.stacks_deadline, child.next_at = now + STACKS_SECONDS, now + STACKS_SETTLE_SECONDS
            tree.send(pid, STACKS_SIGNAL)
        else:
            self._terminate(pid, child)

    def due_seconds(self) -> float | None:
        """How long nothing will be due; None when nothing is being ended."""
        pending = [child.next_at for child in self.children.values() if child.step]
        return max(0.0, min(pending) - time.monotonic()) if pending else None

    def advance(self) -> None:
        """Take every tree whose time has come one step further: stacks, then TERM, then KILL."""
        now = time.monotonic()
        for pid, child in list(self.children.items()):
            if not child.step or child.next_at > now:
                continue
            if child.step == "grace":
                tree.kill(pid)
                child.next_at = now + KILL_AGAIN_SECONDS
            elif _stacks_written(child, now):
                self._terminate(pid, child)
            else:
                child.next_at = now + STACKS_SETTLE_SECONDS

    def _terminate(self, pid: int, child: Child) -> None:
        if child.grace_seconds > 0:
            tree.terminate(pid)
        else:
            tree.kill(pid)
        child.step = "grace"
        child.next_at = time.monotonic() + (child.grace_seconds or KILL_AGAIN_SECONDS)

    # -- burying -----------------------------------------------------------------------

    def reap(self) -> list[dict[str, Any]]:
        """Collect who has ended, and end what they left behind."""
        os.read(self.wake, 4096)
        ended: list[dict[str, Any]] = []
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return ended
            if pid == 0:
                return ended
            self._sweep()
            child = self.children.pop(pid, None)
            if child is not None:
                os.close(child.stacks)
                cpu_seconds = usage.ru_utime + usage.ru_stime
                rss_bytes = usage.ru_maxrss * 1024
                ended.append({"child": child.token, "status": status, "rss": rss_bytes, "cpu": cpu_seconds})

    def _sweep(self) -> None:
        """A child that this process did not fork was orphaned by one that is dead: nobody owns it."""
        if not tree.has_children():
            return
        for pid in tree.own_children():
            if pid not in self.children:
                tree.kill(pid)


def _stacks_written(child: Child, now: float) -> bool:
    """Whether the dump has stopped growing, or took too long."""
    written = os.fstat(child.stacks).st_size
    settled = written > 0 and written == child.stacks_bytes
    child.stacks_bytes = written
    return settled or now >= child.stacks_deadline


def keep_on_exec(descriptor: int) -> None:
    """Let `descriptor` survive an exec."""
    fcntl.fcntl(descriptor, fcntl.F_SETFD, 0)
