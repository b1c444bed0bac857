"""The first steps of a forked process: it drops what was its parent's and takes what it was given."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
from typing import Any, Iterable, Sequence

from ..common import process_tree
from .channel import Channel

_SIGCHLD = (_signal.SIGCHLD,)


def restore_sigchld(before: tuple[bool, Any]) -> None:
    """Have SIGCHLD as it was before the parent began to fork: whether it was blocked, and its action."""
    is_blocked, action = before
    if action is not None:
        process_tree.put_action(_signal.SIGCHLD, action)
    if not is_blocked:
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, _SIGCHLD)


def take_over(
    parent: int,
    channel: Channel,
    targets: Sequence[int],
    given: Sequence[int],
    others: Sequence[tuple[int, int]],
) -> None:
    """End together with the parent, and replace its descriptors by those that were given.

    These get the parent's numbers, so that every object that knows the numbers stays as it is.  All in one
    function, because each function that a fork calls is two pages to be copied.  It uses the C functions of
    `signal`, whose enumerations touch 80 pages.

    Args:
        parent: its process id.
        channel: the parent's channel, which becomes this process' own.
        targets: the descriptors of stdout, stderr and the stacks.
        given: the descriptors of the socket, stdout, stderr and the stacks.
        others: ranges of descriptors to close.
    """
    process_tree.prctl(process_tree.PR_SET_PDEATHSIG, _signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    process_tree.prctl(process_tree.PR_SET_CHILD_SUBREAPER, 1)
    sock, out, err, stacks = given
    os.dup2(sock, channel.descriptor, False)
    for descriptor, target in ((out, targets[0]), (err, targets[1])):
        if descriptor == target:  # the import had closed it, and it was the next free number
            os.set_inheritable(target, True)
        else:
            os.dup2(descriptor, target)
    if stacks != targets[2]:
        os.dup2(stacks, targets[2], False)
    for low, high in others:
        os.closerange(low, high)
    channel.start_over()


def ranges(descriptors: Iterable[int]) -> list[tuple[int, int]]:
    """The same descriptors as ranges, for `os.closerange`."""
    found: list[tuple[int, int]] = []
    for descriptor in sorted(descriptors):
        if found and found[-1][1] == descriptor:
            found[-1] = (found[-1][0], descriptor + 1)
        else:
            found.append((descriptor, descriptor + 1))
    return found
