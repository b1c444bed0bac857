"""Shared memory: what a run puts into /dev/shm, and the processes that Python starts to remove it again.

`multiprocessing` and joblib each start a *resource tracker*, which knows every segment, semaphore and folder
that they have made.  When all processes that use it are gone, it removes what is left, and ends.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from typing import Any, Iterator, Optional, Tuple

from ..common import directory, process_tree

FOLDER = "/dev/shm"
TRACKERS = (
    "multiprocessing.resource_tracker",
    "joblib.externals.loky.backend.resource_tracker",
    "loky.backend.resource_tracker",
)
WAIT_SECONDS = process_tree.TRACKER_SECONDS
POLL_SECONDS = 0.002

_CLONE_NEWNS, _CLONE_NEWIPC = 0x00020000, 0x08000000
_MS_NOSUID, _MS_NODEV, _MS_REC, _MS_SLAVE = 0x2, 0x4, 0x4000, 0x80000
_libc = ctypes.CDLL(None)


def have_own(paths: Tuple[str, ...]) -> bool:
    """Give this process a /dev/shm that no other sees, and that is gone with it; False if that is refused.

    Only a process with CAP_SYS_ADMIN may have one.  System V's shared memory is then its own as well.
    `paths` stay as they are, so if one of them is in /dev/shm, nothing is done.  To be called before
    confinement, which allows no mounts.
    """
    if not os.path.isdir(FOLDER) or any(path.startswith(FOLDER + "/") for path in paths):
        return False
    if _libc.unshare(_CLONE_NEWNS | _CLONE_NEWIPC) and _libc.unshare(_CLONE_NEWNS):
        return False
    # What is mounted elsewhere later is seen here, but nothing the other way round.
    if _libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_SLAVE), None):
        return False
    size = os.statvfs(FOLDER)
    options = b"mode=1777,size=%d" % (size.f_blocks * size.f_frsize)
    flags = ctypes.c_ulong(_MS_NOSUID | _MS_NODEV)
    return bool(_libc.mount(b"tmpfs", FOLDER.encode(), b"tmpfs", flags, options) == 0)


class OwnFolder:
    """This process' own /dev/shm, which is emptied between runs, and read only if something changed."""

    def __init__(self) -> None:
        self._folder = directory.open_at(FOLDER)
        self._empty_stamp: Optional[Tuple[int, int]] = None

    def sweep(self) -> str:
        """Returns why something stays, if it does."""
        status = os.fstat(self._folder)
        if (status.st_ino, status.st_ctime_ns) == self._empty_stamp:
            return ""
        is_empty = not os.listdir(self._folder)
        if not is_empty:
            try:
                directory.empty(self._folder)
            except OSError as error:
                return f"its shared memory can't be removed: {error}"
        self._empty_stamp = directory.lasting_stamp(status) if is_empty else None
        return ""


def end_trackers() -> None:
    """Let the trackers remove what the run has left, unless processes that the run started still use them."""
    for tracker in _running():
        os.close(tracker._fd)
        tracker._fd = None
        _await_end(tracker._pid)
        tracker._pid = None


def _running() -> Iterator[Any]:
    """The trackers that this process has started."""
    for name in TRACKERS:
        tracker = getattr(sys.modules.get(name), "_resource_tracker", None)
        if getattr(tracker, "_fd", None) is not None and getattr(tracker, "_pid", None) is not None:
            yield tracker


def _await_end(pid: int) -> None:
    """Reap a tracker that ends.  One that other processes use doesn't, and they all are ended later."""
    give_up_at = time.monotonic() + WAIT_SECONDS
    try:
        while os.waitpid(pid, os.WNOHANG)[0] == 0 and time.monotonic() < give_up_at:
            if any(child != pid for child in process_tree.children(os.getpid())):
                return
            time.sleep(POLL_SECONDS)
    except ChildProcessError:
        return
