"""Directories that a tool may have changed: opened, emptied and compared without following a link."""

from __future__ import annotations

import contextlib
import errno
import os
import time

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OWNER_ALL = 0o700

ARTIFACTS = "artifacts"
"""The directory beside the temp directory in which artifacts are handed over."""

CLOCK_STEP_NS = 10_000_000
"""A file system's clock moves in steps of up to 10 ms: two changes within one get the same time stamp."""

SETTLED_NS = 5 * CLOCK_STEP_NS

_Level = tuple[tuple[int, int], "list[str]"]
"""A directory by its device and inode, and its subdirectories that are still to be removed."""


def open_at(path: str) -> int:
    """The directory at exactly this absolute path.  OSError if it is missing or behind a link."""
    descriptor = os.open(path, _FLAGS)
    if os.readlink(f"/proc/self/fd/{descriptor}") != path:
        os.close(descriptor)
        raise NotADirectoryError(errno.ENOTDIR, "a link leads elsewhere", path)
    return descriptor


def open_below(name: str, parent: int) -> int:
    """A subdirectory, even if its owner may not read it.  OSError if it is a link or missing."""
    try:
        return os.open(name, _FLAGS, dir_fd=parent)
    except PermissionError:
        unreadable = os.open(name, _FLAGS | os.O_PATH, dir_fd=parent)
        try:
            os.chmod(f"/proc/self/fd/{unreadable}", _OWNER_ALL)
        finally:
            os.close(unreadable)
        return os.open(name, _FLAGS, dir_fd=parent)


def names(descriptor: int) -> list[str]:
    """The entries of an open directory."""
    return os.listdir(descriptor)


# -- emptying -------------------------------------------------------------------------


def empty(top: int) -> None:
    """Remove everything in the directory that is open as `top`, however deep.  OSError if something stays.

    A link is removed, not what it leads to.  Only one directory is open at a time, so that neither the
    depth nor another process that renames directories can lead this astray.  Another process may remove
    the same files at the same time.
    """
    problems: list[OSError] = []
    above: list[_Level] = []
    here, pending = os.dup(top), _unlink_files(top, problems)
    try:
        while pending or above:
            if not pending:
                here, pending = _ascend(here, above)
                _rmdir(pending.pop(), here, problems)
                continue
            try:
                below = open_below(pending[-1], here)
            except OSError as error:
                _note(error, problems)
                pending.pop()
                continue
            above.append((_inode(here), pending))
            os.close(here)
            here, pending = below, _unlink_files(below, problems)
    finally:
        os.close(here)
    if problems:
        raise problems[0]


def _unlink_files(descriptor: int, problems: list[OSError]) -> list[str]:
    """Remove what is not a directory; return the names of the directories."""
    directories = []
    mode = os.fstat(descriptor).st_mode
    if mode & _OWNER_ALL != _OWNER_ALL:
        os.fchmod(descriptor, _OWNER_ALL)
    for name, is_directory in _entries(descriptor):
        if is_directory:
            directories.append(name)
            continue
        try:
            os.unlink(name, dir_fd=descriptor)
        except OSError as error:
            _note(error, problems)
    return directories


def _entries(descriptor: int) -> list[tuple[str, bool]]:
    """The entries of a directory, and whether each is a directory itself."""
    try:
        with os.scandir(descriptor) as entries:
            return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    except FileNotFoundError:
        return []


def _note(error: OSError, problems: list[OSError]) -> None:
    if not isinstance(error, FileNotFoundError):
        problems.append(error)


def _ascend(here: int, above: list[_Level]) -> tuple[int, list[str]]:
    """Go back to the parent directory, and close the one below."""
    parent = os.open("..", _FLAGS, dir_fd=here)
    inode, pending = above.pop()
    if _inode(parent) != inode:
        os.close(parent)
        raise OSError(errno.ESTALE, "a directory was moved while it was being removed")
    os.close(here)
    return parent, pending


def _rmdir(name: str, parent: int, problems: list[OSError]) -> None:
    try:
        os.rmdir(name, dir_fd=parent)
    except OSError as error:
        _note(error, problems)


def _inode(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


# -- a run's temp directory -----------------------------------------------------------


def enter(path: str) -> None:
    """Make it the working directory, and create it if it is missing.  OSError if that is impossible."""
    try:
        os.chdir(path)
    except FileNotFoundError:
        make(path)
        os.chdir(path)


def make(path: str) -> None:
    """Create it, and its parent if that is missing, too.  OSError if the parent is a link."""
    above, _, name = path.rpartition("/")
    with contextlib.suppress(FileExistsError):
        os.mkdir(above, _OWNER_ALL)
    descriptor = open_at(above)
    try:
        os.mkdir(name, _OWNER_ALL, dir_fd=descriptor)
    finally:
        os.close(descriptor)


class TempSweeper:
    """Empties the temp directory after each run, removes what was put beside it, and reads only what changed.

    The kernel stamps a directory when an entry is added or removed, and when it is renamed.  So one with
    the stamp that it had when it was empty need not be read.  What a run may have put in its place, above
    all a link, is never emptied.

    Args:
        path: the temp directory, which exists.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._above, _, self._name = path.rpartition("/")
        self._made, self._made_above = _identity(os.lstat(path)), _identity(os.lstat(self._above))
        self._folder, self._folder_above = open_at(path), open_at(self._above)
        self._clean: tuple[tuple[int, int] | None, tuple[int, int] | None] | None = None

    def sweep(self) -> str:
        """Remove what the run wrote, or create the directory again.  Returns why that failed, if it did."""
        folder, above = os.fstat(self._folder), os.fstat(self._folder_above)
        if ((folder.st_ino, folder.st_ctime_ns), (above.st_ino, above.st_ctime_ns)) == self._clean:
            return ""
        try:
            if _identity(os.lstat(self._above)) != self._made_above:
                return "the directory of its temp directory is not the one that was made for it any more"
            is_clean = self._sweep_beside()
            return self._sweep_temp(is_clean)
        except OSError as error:
            return f"its temp directory can't be emptied: {error}"

    def _sweep_beside(self) -> bool:
        """Remove what is beside it; whether there was nothing."""
        top = open_at(self._above)
        try:
            others = [name for name in os.listdir(top) if name not in (self._name, ARTIFACTS)]
            for name in others:
                _remove_from(top, name)
        finally:
            os.close(top)
        return not others

    def _sweep_temp(self, is_clean: bool) -> str:
        try:
            status = os.lstat(self._path)
        except FileNotFoundError:
            self._make_again()
            return ""
        if _identity(status) != self._made:
            return "its temp directory is not the one that was made for it any more"
        descriptor = open_at(self._path)
        try:
            status, above = os.fstat(descriptor), os.lstat(self._above)
            is_empty = not os.listdir(descriptor)
            if not is_empty:
                empty(descriptor)
        finally:
            os.close(descriptor)
        stamps = lasting_stamp(status), lasting_stamp(above)
        self._clean = stamps if is_clean and is_empty and None not in stamps else None
        return ""

    def _make_again(self) -> None:
        make(self._path)
        self._made, self._clean = _identity(os.lstat(self._path)), None
        descriptor = open_at(self._path)
        os.dup2(descriptor, self._folder, False)
        os.close(descriptor)


def _remove_from(parent: int, name: str) -> None:
    """Remove an entry of an open directory, whatever it is."""
    try:
        os.unlink(name, dir_fd=parent)
    except IsADirectoryError:
        descriptor = open_below(name, parent)
        try:
            empty(descriptor)
        finally:
            os.close(descriptor)
        os.rmdir(name, dir_fd=parent)


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    """What stays the same about a directory, whatever is put into it."""
    return status.st_dev, status.st_ino, status.st_mode


def lasting_stamp(status: os.stat_result, settled_ns: int = SETTLED_NS) -> tuple[int, int] | None:
    """A directory's stamp, if the next change is sure to give it another; None otherwise."""
    changed_ns = status.st_ctime_ns
    is_settled = time.time_ns() - changed_ns > settled_ns
    # A file system with a coarser clock has round numbers.
    return (status.st_ino, changed_ns) if is_settled and changed_ns % CLOCK_STEP_NS else None
