"""The processes that this one forked: it starts them, ends their trees and says how they ended.

Whoever forked a process is the only one who may signal it: until its owner has
reaped it, its process id can't belong to anybody else.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import fcntl
import os
import select
import time
from typing import Any

from ..common import process_tree

STACKS_SIGNAL = 63
STACKS_SECONDS = 0.15
STACKS_SETTLE_SECONDS = 0.01
KILL_AGAIN_SECONDS = 0.1


class Child:
    """A forked process: what the executor calls it, where it has its stacks, and how far its end has come."""

    def __init__(self, token: int, stacks: str) -> None:
        self.token = token
        self.stacks = stacks
        self.step = ""
        self.next_at = 0.0
        self.grace_seconds = 0.0
        self.stacks_deadline = 0.0
        self.stacks_bytes = 0


class Owner:
    """Keeps the children of this process and answers for them; each has its stacks under that number."""

    def __init__(self, wire: int, stacks: int) -> None:
        self.children: dict[int, Child] = {}
        self._ending: dict[int, Child] = {}
        self._wire = wire
        self._stacks = stacks
        self.pid = os.getpid()
        # Blocked, it waits to be read; ignored, it would never come, and the kernel would bury the children.
        blocked = _signal.pthread_sigmask(_signal.SIG_BLOCK, (_signal.SIGCHLD,))
        self.signals_before = _signal.SIGCHLD in blocked, process_tree.take_action(_signal.SIGCHLD)
        self.ends = process_tree.descriptor_of_ends()
        self._poll = select.poll()
        for descriptor in (wire, self.ends):
            self._poll.register(descriptor, select.POLLIN)
        process_tree.adopt_orphans()

    def fork(self, number: int) -> tuple[list[int], OSError | None]:
        """Fork so often: the process ids, and what kept it from going on.  In a child the last of them is 0.

        Nothing else is done between two forks, because each page that is touched there is copied again.
        """
        pids: list[int] = []
        try:
            while len(pids) < number:
                pids.append(os.fork())
                if not pids[-1]:
                    break
        except OSError as error:
            return pids, error
        return pids, None

    def adopt(self, born: list[tuple[int, int]]) -> None:
        """Keep those that were forked: a token and a process id each."""
        for token, pid in born:
            self.children[pid] = Child(token, f"/proc/{pid}/fd/{self._stacks}")

    # -- waiting -----------------------------------------------------------------------

    def wait(self) -> tuple[bool, list[dict[str, Any]]]:
        """Wait for bytes on the wire, a child's end or what is due: are there bytes, and who has ended."""
        if self._ending:
            due_seconds = max(0.0, min(child.next_at for child in self._ending.values()) - time.monotonic())
            ready = self._poll.poll(due_seconds * 1000)
        else:
            ready = self._poll.poll()
        woken = [descriptor for descriptor, _ in ready]
        ended = self._reap() if self.ends in woken else []
        if self._ending:
            self._advance()
        return self._wire in woken, ended

    # -- ending ------------------------------------------------------------------------

    def end(self, token: int, grace_seconds: float, stacks: bool) -> None:
        """Begin to end the tree of a child; `reap` tells when it is over."""
        found = [(pid, child) for pid, child in self.children.items() if child.token == token]
        if not found:
            return
        pid, child = found[0]
        self._ending[pid] = child
        child.grace_seconds = min(child.grace_seconds, grace_seconds) if child.step else grace_seconds
        if stacks and not child.step:
            now = time.monotonic()
            child.step = "stacks"
            child.stacks_deadline, child.next_at = now + STACKS_SECONDS, now + STACKS_SETTLE_SECONDS
            process_tree.send(pid, STACKS_SIGNAL)
        else:
            self._terminate(pid, child)

    def _advance(self) -> None:
        """Take every tree whose time has come one step further: stacks, then TERM, then KILL."""
        now = time.monotonic()
        for pid, child in list(self._ending.items()):
            if child.next_at > now:
                continue
            if child.step == "grace":
                process_tree.kill(pid)
                child.next_at = now + KILL_AGAIN_SECONDS
            elif _stacks_written(child, now):
                self._terminate(pid, child)
            else:
                child.next_at = now + STACKS_SETTLE_SECONDS

    def _terminate(self, pid: int, child: Child) -> None:
        if child.grace_seconds > 0:
            process_tree.terminate(pid)
        else:
            process_tree.kill(pid)
        child.step = "grace"
        child.next_at = time.monotonic() + (child.grace_seconds or KILL_AGAIN_SECONDS)

    # -- burying -----------------------------------------------------------------------

    def _reap(self) -> list[dict[str, Any]]:
        """Collect who has ended, and end what they left behind."""
        os.read(self.ends, 4096)
        ended: list[dict[str, Any]] = []
        while self.children or process_tree.has_children():
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:  # somebody else has buried them
                return ended
            if pid == 0:
                self._sweep()
                return ended
            self._ending.pop(pid, None)
            child = self.children.pop(pid, None)
            if child is not None:
                cpu_seconds = usage.ru_utime + usage.ru_stime
                rss_bytes = usage.ru_maxrss * 1024
                ended.append({"child": child.token, "status": status, "rss": rss_bytes, "cpu": cpu_seconds})
        return ended

    def _sweep(self) -> None:
        """A child that this process did not fork was orphaned by one that is dead: nobody owns it."""
        for pid in process_tree.own_children():
            if pid not in self.children:
                process_tree.kill(pid)


def _stacks_written(child: Child, now: float) -> bool:
    """Whether the dump has stopped growing, or took too long."""
    try:
        written = os.stat(child.stacks).st_size
    except OSError:  # it is gone, or lets nobody see what it has open
        written = 0
    settled = written > 0 and written == child.stacks_bytes
    child.stacks_bytes = written
    return settled or now >= child.stacks_deadline


def keep_on_exec(descriptor: int) -> None:
    """Let `descriptor` survive an exec."""
    fcntl.fcntl(descriptor, fcntl.F_SETFD, 0)
