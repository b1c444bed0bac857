"""The first steps of a forked process: it leaves behind what was its parent's and takes its own places."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
from typing import Any, Iterable, Sequence

from . import tree, wire


def forget_signals(wakeup: int, handler: Any, blocked: bool) -> None:
    """Have SIGCHLD as it was before the parent wanted to hear of its children.

    The C functions: the enumerations of `signal` touch 80 pages, each of which the fork would copy.
    """
    _signal.set_wakeup_fd(wakeup)
    _signal.signal(_signal.SIGCHLD, handler)
    if blocked:
        _signal.pthread_sigmask(_signal.SIG_BLOCK, (_signal.SIGCHLD,))


def depend_on(parent: int) -> None:
    """End with the parent, which may be gone already, and adopt the orphans below."""
    tree.prctl(tree.PR_SET_PDEATHSIG, _signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    tree.prctl(tree.PR_SET_CHILD_SUBREAPER, 1)


def take_seats(
    channel: wire.Wire, seats: Sequence[int], given: list[int], spans: list[tuple[int, int]]
) -> None:
    """Put the descriptors that were given where the parent has its own, and close what was passed in `spans`.

    Under the same numbers, so that every object which knows them stays as it is.
    """
    sock, out, err, stacks = given
    channel.replace(sock)
    os.dup2(out, seats[0])
    os.dup2(err, seats[1])
    os.dup2(stacks, seats[2], False)
    for low, high in spans:
        os.closerange(low, high)


def spans(descriptors: Iterable[int]) -> list[tuple[int, int]]:
    """The same descriptors as ranges, for `os.closerange`."""
    found: list[tuple[int, int]] = []
    for descriptor in sorted(descriptors):
        if found and found[-1][1] == descriptor:
            found[-1] = (found[-1][0], descriptor + 1)
        else:
            found.append((descriptor, descriptor + 1))
    return found
