"""Stands between the executor and the fork server, for the case that somebody kills the latter.

Whatever a dead process had started falls to the nearest process above it that takes
orphans.  With nobody between the fork server and the machine's first process, what
a tool had started in a session and with an environment of its own could not be
found again.  The executor itself can't be the one who takes orphans: they would
be mixed with those of the program that it is a part of.
"""

from __future__ import annotations

import os
import signal

from ..common import process_tree


def stand_by(descriptor: int) -> None:
    """Return in a fork of this process, which ends with this one; stay behind to end what it leaves.

    `descriptor` is the fork's alone from now on.  SIGTERM, also sent when the executor dies, ends all of it.
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
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # its process id may be another's by now
    process_tree.kill_all()
    os._exit(0)
