"""The first steps of a forked process: it leaves behind what was its parent's and takes its own places."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
from typing import Any, Iterable, Sequence

from ..common import process_tree
from .channel import Channel

_SIGCHLD = (_signal.SIGCHLD,)


def hear_of_ends(signals: tuple[bool, Any]) -> None:
    """Have SIGCHLD as it was before the parent began to fork: was it blocked, and what did it do?"""
    is_blocked, action = signals
    if action is not None:
        process_tree.put_action(_signal.SIGCHLD, action)
    if not is_blocked:
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, _SIGCHLD)


def begin(
    parent: int,
    channel: Channel,
    seats: Sequence[int],
    given: Sequence[int],
    others: Sequence[tuple[int, int]],
) -> None:
    """End with the parent, and sit where it sits; `others` are closed.

    What was given takes the places of the parent's descriptors, under the same numbers, so that every
    object which knows them stays as it is.  All in one function, because each function that a fork calls
    is two pages to be copied.  The C functions of `signal`: its enumerations touch 80.
    """
    process_tree.prctl(process_tree.PR_SET_PDEATHSIG, _signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    process_tree.prctl(process_tree.PR_SET_CHILD_SUBREAPER, 1)
    sock, out, err, stacks = given
    os.dup2(sock, channel.descriptor, False)
    for descriptor, seat in ((out, seats[0]), (err, seats[1])):
        if descriptor == seat:  # the import had closed it, and it was the next that was free
            os.set_inheritable(seat, True)
        else:
            os.dup2(descriptor, seat)
    if stacks != seats[2]:
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
