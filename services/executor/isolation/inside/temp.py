"""The temp directory of a run: entered before it and emptied after it, for the next run of the process."""

from __future__ import annotations

import contextlib
import os
import time

# A file system's clock moves in steps of up to 10 ms: what changes twice within one shows the same time.
CLOCK_STEP_NS = 10_000_000
SETTLED_NS = 5 * CLOCK_STEP_NS


def enter(path: str) -> None:
    """Make it the working directory; a run may have removed it."""
    try:
        os.chdir(path)
    except FileNotFoundError:
        make(path)


def make(path: str) -> None:
    """Make it, and the place that it lies in if that is missing too, and enter it."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(path.rpartition("/")[0], 0o700)
    os.mkdir(path, 0o700)
    os.chdir(path)


class Sweeper:
    """Empties the directory after each run, and looks into it only when something changed.

    The kernel stamps a directory when an entry comes or goes and when it is
    renamed, so one that bears the stamp it had when it was empty needs no look.
    """

    def __init__(self) -> None:
        self._empty_stamp: tuple[int, int] | None = None

    def sweep(self, path: str) -> str:
        """Remove what the run wrote; why that is not possible, if it isn't."""
        try:
            status = os.stat(path)
            if (status.st_ino, status.st_ctime_ns) == self._empty_stamp:
                return ""
            entries = os.listdir(path)
        except FileNotFoundError:
            return ""
        for entry in entries:
            problem = _remove(os.path.join(path, entry))
            if problem:
                return f"its temp directory can't be emptied: {problem}"
        self._empty_stamp = None if entries else _lasting_stamp(status)
        return ""


def _lasting_stamp(status: os.stat_result) -> tuple[int, int] | None:
    """A directory's stamp, if a change from now on is sure to make another; None if it isn't."""
    changed_ns = status.st_ctime_ns
    is_settled = time.time_ns() - changed_ns > SETTLED_NS
    # A file system whose clock is coarser shows round numbers.
    return (status.st_ino, changed_ns) if is_settled and changed_ns % CLOCK_STEP_NS else None


def _remove(path: str) -> str:
    import shutil

    try:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
    except OSError as error:
        return str(error)
    return ""
