"""The temp directory of a run: entered before it and emptied after it, for the next run of the process."""

from __future__ import annotations

import contextlib
import os
import time

from ..common import directory

# A file system's clock moves in steps of up to 10 ms: what changes twice within one shows the same time.
CLOCK_STEP_NS = 10_000_000
SETTLED_NS = 5 * CLOCK_STEP_NS


def enter(path: str) -> None:
    """Make it the working directory, and make it first if nobody has; OSError if it can't be."""
    try:
        os.chdir(path)
    except FileNotFoundError:
        make(path)
        os.chdir(path)


def make(path: str) -> None:
    """Make it, and the place that it lies in if that is missing too; OSError if a link is in its way."""
    place, _, name = path.rpartition("/")
    with contextlib.suppress(FileExistsError):
        os.mkdir(place, 0o700)
    descriptor = directory.open_at(place)
    try:
        os.mkdir(name, 0o700, dir_fd=descriptor)
    finally:
        os.close(descriptor)


class Sweeper:
    """Empties the directory after each run, and looks into it only when something changed.

    The kernel stamps a directory when an entry comes or goes and when it is
    renamed, so one that bears the stamp it had when it was empty needs no look.
    What a run may have put in its place, a link above all, is never emptied.
    """

    def __init__(self, path: str) -> None:
        self._made = _identity(os.lstat(path)) if os.path.lexists(path) else None
        self._empty_stamp: tuple[int, int] | None = None

    def sweep(self, path: str) -> str:
        """Remove what the run wrote, or make the directory anew; why that is not possible, if it isn't."""
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            make(path)
            self._made, self._empty_stamp = _identity(os.lstat(path)), None
            return ""
        if (status.st_ino, status.st_ctime_ns) == self._empty_stamp:
            return ""
        if _identity(status) != self._made:
            return "its temp directory is not the one that was made for it any more"
        try:
            self._empty(path)
        except OSError as error:
            return f"its temp directory can't be emptied: {error}"
        return ""

    def _empty(self, path: str) -> None:
        descriptor = directory.open_at(path)
        try:
            status = os.fstat(descriptor)
            is_empty = not os.listdir(descriptor)
            if not is_empty:
                directory.empty(descriptor)
        finally:
            os.close(descriptor)
        self._empty_stamp = lasting_stamp(status) if is_empty else None


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    """What stays the same of a directory, whatever is put into it."""
    return status.st_dev, status.st_ino, status.st_mode


def lasting_stamp(status: os.stat_result) -> tuple[int, int] | None:
    """A directory's stamp, if a change from now on is sure to make another; None if it isn't."""
    changed_ns = status.st_ctime_ns
    is_settled = time.time_ns() - changed_ns > SETTLED_NS
    # A file system whose clock is coarser shows round numbers.
    return (status.st_ino, changed_ns) if is_settled and changed_ns % CLOCK_STEP_NS else None
