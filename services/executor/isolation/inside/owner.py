"""The processes that this one forked: it starts them, ends their trees and says how they ended.

Whoever forked a process is the only one who may signal it: until its owner has
reaped it, its process id can't belong to anybody else.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from typing import Any

from . import tree

STACKS_SIGNAL = 63
STACKS_SECONDS = 0.15
STACKS_SETTLE_SECONDS = 0.01


class Ending:
    """How far the end of one tree has come: stacks, then TERM, then KILL."""

    def __init__(self, grace_seconds: float) -> None:
        self.grace_seconds = grace_seconds
        self.step = "stacks"
        self.next_at = 0.0
        self.stacks_deadline = 0.0
        self.stacks_bytes = 0


class Owner:
    """Keeps the children of this process and answers for them."""

    def __init__(self) -> None:
        self.children: dict[int, int] = {}
        self.endings: dict[int, Ending] = {}
        self.wake, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        tree.adopt_orphans()

    def fork(self, stacks: int) -> int:
        """Fork; 0 in the child, which has forgotten everything that its parent owns."""
        parent = os.getpid()
        pid = os.fork()
        if pid:
            self.children[pid] = stacks
            return pid
        self._forget()
        os.setsid()
        tree.die_with_parent()
        if os.getppid() != parent:
            os._exit(1)
        tree.adopt_orphans()
        return 0

    def _forget(self) -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for descriptor in (self.wake, self._wake_write, *self.children.values()):
            os.close(descriptor)

    def end(self, pid: int, grace_seconds: float, stacks: bool) -> None:
        """Begin to end the tree of `pid`; `reap` tells when it is over."""
        if pid not in self.children:
            return
        ending = self.endings.setdefault(pid, Ending(grace_seconds))
        ending.grace_seconds = min(ending.grace_seconds, grace_seconds)
        if ending.step == "stacks" and stacks:
            now = time.monotonic()
            ending.stacks_deadline, ending.next_at = now + STACKS_SECONDS, now + STACKS_SETTLE_SECONDS
            tree.send(pid, STACKS_SIGNAL)
        elif ending.step != "gone":
            self._terminate(pid, ending)

    def due_seconds(self) -> float | None:
        """How long nothing will be due; None when nothing is being ended."""
        pending = [ending.next_at for ending in self.endings.values()]
        return max(0.0, min(pending) - time.monotonic()) if pending else None

    def advance(self) -> None:
        """Take every tree whose time has come one step further."""
        now = time.monotonic()
        for pid, ending in list(self.endings.items()):
            if ending.next_at > now:
                continue
            if ending.step == "stacks" and not self._stacks_written(pid, ending, now):
                ending.next_at = now + STACKS_SETTLE_SECONDS
            elif ending.step == "stacks":
                self._terminate(pid, ending)
            else:
                tree.kill(pid)
                ending.next_at = now + 0.1

    def _stacks_written(self, pid: int, ending: Ending, now: float) -> bool:
        """Whether the dump has stopped growing, or took too long."""
        written = os.fstat(self.children[pid]).st_size
        settled = written > 0 and written == ending.stacks_bytes
        ending.stacks_bytes = written
        return settled or now >= ending.stacks_deadline

    def _terminate(self, pid: int, ending: Ending) -> None:
        if ending.grace_seconds > 0:
            tree.terminate(pid)
        else:
            tree.kill(pid)
        ending.step = "grace"
        ending.next_at = time.monotonic() + (ending.grace_seconds or 0.1)

    def reap(self) -> list[dict[str, Any]]:
        """Collect who has ended, and end what they left behind."""
        while True:
            try:
                if not os.read(self.wake, 4096):
                    break
            except BlockingIOError:
                break
        ended: list[dict[str, Any]] = []
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return ended
            if pid == 0:
                return ended
            self._sweep()
            if pid in self.children:
                os.close(self.children.pop(pid))
                self.endings.pop(pid, None)
                cpu_seconds = usage.ru_utime + usage.ru_stime
                ended.append(
                    {"pid": pid, "status": status, "rss": usage.ru_maxrss * 1024, "cpu": cpu_seconds}
                )

    def _sweep(self) -> None:
        """A child that this process did not fork was orphaned by one that is dead: nobody owns it."""
        if not tree.has_children():
            return
        for pid in tree.children(os.getpid()):
            if pid not in self.children:
                tree.kill(pid)

    def kill_all(self) -> None:
        """End everything below this process at once and wait until nothing is left."""
        while True:
            below = tree.children(os.getpid())
            for pid in below:
                tree.kill(pid)
            try:
                os.wait4(-1, 0)
            except ChildProcessError:
                return


def keep_on_exec(descriptor: int) -> None:
    """Let `descriptor` survive an exec."""
    fcntl.fcntl(descriptor, fcntl.F_SETFD, 0)
