"""Starts processes, ends their trees and reports how they ended; and the subreaper above the fork server.

Only the process that has forked another may signal it: until it has reaped it, the process id can't belong
to any other.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import fcntl
import math
import os
import select
import signal
import time
from typing import Any

from ..common import process_tree

STACKS_SIGNAL = 63
STACKS_SECONDS = 0.15
STACKS_SETTLE_SECONDS = 0.01
KILL_AGAIN_SECONDS = 0.1


class Child:
    """A forked process: its token, the file with its stacks, and how far its end has come."""

    def __init__(self, token: int, stacks: str) -> None:
        self.token = token
        self.stacks = stacks
        self.step = ""
        self.next_at = 0.0
        self.grace_seconds = 0.0
        self.stacks_deadline = 0.0
        self.stacks_bytes = 0


class Supervisor:
    """Supervises the children of this process.

    Args:
        channel: the descriptor of the socket to the executor, to wait for.
        stacks: the descriptor that each child's stacks go to, in the child.
    """

    def __init__(self, channel: int, stacks: int) -> None:
        self.children: dict[int, Child] = {}
        self._ending: dict[int, Child] = {}
        self._spares_until = self._sweep_at = math.inf
        self._channel = channel
        self._stacks = stacks
        self.pid = os.getpid()
        # Blocked, SIGCHLD can be read.  Ignored, it never comes, and the kernel reaps the children.
        blocked = _signal.pthread_sigmask(_signal.SIG_BLOCK, (_signal.SIGCHLD,))
        self.sigchld_before = _signal.SIGCHLD in blocked, process_tree.take_action(_signal.SIGCHLD)
        self.ends = process_tree.descriptor_of_ends()
        self._poll = select.poll()
        for descriptor in (channel, self.ends):
            self._poll.register(descriptor, select.POLLIN)
        process_tree.adopt_orphans()

    def fork(self, number: int) -> tuple[list[int], OSError | None]:
        """Fork so many times: the process ids, and the error that stopped it.  In a child, the last id is 0.

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

    def adopt(self, forked: list[tuple[int, int]]) -> None:
        """Supervise those that were forked: a token and a process id each."""
        for token, pid in forked:
            self.children[pid] = Child(token, f"/proc/{pid}/fd/{self._stacks}")

    # -- waiting -----------------------------------------------------------------------

    def wait(self) -> tuple[bool, list[dict[str, Any]]]:
        """Wait for a message, a child's end or a deadline: whether there is a message, and who has ended."""
        if self._ending or self._sweep_at < math.inf:
            due_at = [*(child.next_at for child in self._ending.values()), self._sweep_at]
            ready = self._poll.poll(max(0.0, min(due_at) - time.monotonic()) * 1000)
        else:
            ready = self._poll.poll()
        woken = [descriptor for descriptor, _ in ready]
        ended = self._reap() if self.ends in woken else []
        if self._ending:
            self._advance()
        if self._sweep_at < math.inf:
            self.sweep()
        return self._channel in woken, ended

    # -- ending ------------------------------------------------------------------------

    def end(self, token: int, grace_seconds: float, stacks: bool) -> None:
        """Begin to end a child's tree.  `wait` reports when it is over."""
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
        """Take each tree that is due one step further: stacks, then TERM, then KILL."""
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

    # -- reaping -----------------------------------------------------------------------

    def _reap(self) -> list[dict[str, Any]]:
        """Reap those that have ended, and kill what they left behind."""
        os.read(self.ends, 4096)
        ended: list[dict[str, Any]] = []
        while self.children or process_tree.has_children():
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:  # a thread of the tool's has reaped them
                return ended
            if pid == 0:
                self.sweep()
                return ended
            self._ending.pop(pid, None)
            child = self.children.pop(pid, None)
            if child is not None:
                cpu_seconds = usage.ru_utime + usage.ru_stime
                rss_bytes = usage.ru_maxrss * 1024
                ended.append({"child": child.token, "status": status, "rss": rss_bytes, "cpu": cpu_seconds})
        return ended

    def sweep(self) -> None:
        """Kill the orphans: a child that this process did not fork belongs to no run.

        Its parent has died, or has given up adopting orphans and let go of it.  Resource trackers have their
        time to end.  All of them have the same, from the first one on until no orphan is left: a process that
        only looks like a tracker can start another one before it ends.
        """
        orphans = [pid for pid in process_tree.own_children() if pid not in self.children]
        if not orphans:
            self._spares_until = self._sweep_at = math.inf
            return
        now = time.monotonic()
        trackers = list(filter(process_tree.is_tracker, orphans))
        if trackers and self._spares_until == math.inf:
            self._spares_until = self._sweep_at = now + process_tree.TRACKER_SECONDS
        is_over = now >= self._spares_until
        if is_over:
            self._sweep_at = now + KILL_AGAIN_SECONDS
        for pid in orphans:
            if is_over or pid not in trackers:
                process_tree.kill(pid, spares_trackers=not is_over)


def _stacks_written(child: Child, now: float) -> bool:
    """Whether the dump has stopped growing, or takes too long."""
    try:
        written = os.stat(child.stacks).st_size
    except OSError:  # the process is gone, or does not let others see its open files
        written = 0
    settled = written > 0 and written == child.stacks_bytes
    child.stacks_bytes = written
    return settled or now >= child.stacks_deadline


def keep_on_exec(descriptor: int) -> None:
    """Let `descriptor` survive an exec."""
    fcntl.fcntl(descriptor, fcntl.F_SETFD, 0)


# -- the subreaper --------------------------------------------------------------------


def become_subreaper(descriptor: int) -> None:
    """Return in a fork of this process, and end whatever that fork leaves behind once it is dead.

    An orphan falls to the nearest process above it that adopts orphans.  If somebody kills the fork server
    and there is nobody between it and the machine's first process, what a tool has started in a session and
    with an environment of its own can't be found again.  The executor can't be the one to adopt orphans,
    because they would be mixed with those of the program that it is a part of.

    `descriptor` belongs to the fork alone from now on.  SIGTERM, also sent when the executor dies, ends all.
    """
    process_tree.adopt_orphans()
    parent = os.getpid()
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
    pid = os.fork()
    if pid == 0:
        process_tree.die_with_parent()
        if os.getppid() != parent:
            os._exit(1)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))
        return
    os.close(descriptor)
    signal.signal(signal.SIGTERM, lambda *_: process_tree.send(pid, signal.SIGKILL))
    process_tree.die_with_parent(int(signal.SIGTERM))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))
    os.waitpid(pid, 0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the process id may be another's by now
    process_tree.kill_all()
    os._exit(0)
