"""The first steps of a forked process: it leaves behind what was its parent's and takes its own places."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
from typing import Iterable, Sequence

from . import tree, wire

_SIGCHLD = (_signal.SIGCHLD,)


def begin(
    parent: int,
    signals: tuple[bool, bool],
    channel: wire.Wire,
    seats: Sequence[int],
    given: Sequence[int],
    others: Sequence[tuple[int, int]],
) -> None:
    """End with the parent, have SIGCHLD as it was before it, and sit where it sits; `others` are closed.

    What was given takes the places of the parent's descriptors, under the same numbers, so that every
    object which knows them stays as it is.  All in one function, because each function that a fork calls
    is two pages to be copied.  The C functions of `signal`: its enumerations touch 80.
    """
    is_blocked, is_ignored = signals
    if is_ignored:
        _signal.signal(_signal.SIGCHLD, _signal.SIG_IGN)
    if not is_blocked:
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, _SIGCHLD)
    tree.prctl(tree.PR_SET_PDEATHSIG, _signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    tree.prctl(tree.PR_SET_CHILD_SUBREAPER, 1)
    sock, out, err, stacks = given
    os.dup2(sock, channel.descriptor, False)
    os.dup2(out, seats[0])
    os.dup2(err, seats[1])
    os.dup2(stacks, seats[2], False)
    for low, high in others:
        os.closerange(low, high)
    channel.start_over()


def spans(descriptors: Iterable[int]) -> list[tuple[int, int]]:
    """The same descriptors as ranges, for `os.closerange`."""
    found: list[tuple[int, int]] = []
    for descriptor in sorted(descriptors):
        if found and found[-1][1] == descriptor:
            found[-1] = (found[-1][0], descriptor + 1)
        else:
            found.append((descriptor, descriptor + 1))
    return found
