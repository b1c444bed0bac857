"""Directories that a tool may have tampered with: opened and emptied without following a link."""

from __future__ import annotations

import errno
import os

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OWNER_ALL = 0o700

_Level = tuple[tuple[int, int], "list[str]"]
"""A directory by its device and inode, and its subdirectories that are still to be removed."""


def open_at(path: str) -> int:
    """The directory at exactly this absolute path; OSError if there is none or a link is on the way to it."""
    descriptor = os.open(path, _FLAGS)
    if os.readlink(f"/proc/self/fd/{descriptor}") != path:
        os.close(descriptor)
        raise NotADirectoryError(errno.ENOTDIR, "a link leads elsewhere", path)
    return descriptor


def names(descriptor: int) -> list[str]:
    """What is in an open directory."""
    return os.listdir(descriptor)


def empty(top: int) -> None:
    """Remove all that is in the directory that is open as `top`, however deep; OSError if something stays.

    A link is removed, not what it leads to.  It holds a single directory open, so
    that neither the depth nor another's renaming can lead it astray.  Somebody else
    may be at the same work.
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
            above.append((_identity(here), pending))
            os.close(here)
            here, pending = below, _unlink_files(below, problems)
    finally:
        os.close(here)
    if problems:
        raise problems[0]


def _unlink_files(descriptor: int, problems: list[OSError]) -> list[str]:
    """Remove what is no directory; the names of the directories."""
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
    """What is in a directory, and whether it is one itself."""
    try:
        with os.scandir(descriptor) as entries:
            return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    except FileNotFoundError:
        return []


def _note(error: OSError, problems: list[OSError]) -> None:
    if not isinstance(error, FileNotFoundError):
        problems.append(error)


def open_below(name: str, parent: int) -> int:
    """A subdirectory, open, and also if its owner may not read it; OSError if it is a link or missing."""
    try:
        return os.open(name, _FLAGS, dir_fd=parent)
    except PermissionError:
        place = os.open(name, _FLAGS | os.O_PATH, dir_fd=parent)
        try:
            os.chmod(f"/proc/self/fd/{place}", _OWNER_ALL)
        finally:
            os.close(place)
        return os.open(name, _FLAGS, dir_fd=parent)


def _ascend(here: int, above: list[_Level]) -> tuple[int, list[str]]:
    """Go back to the directory that the last step down came from, and close the one below."""
    parent = os.open("..", _FLAGS, dir_fd=here)
    identity, pending = above.pop()
    if _identity(parent) != identity:
        os.close(parent)
        raise OSError(errno.ESTALE, "a directory was moved while it was being removed")
    os.close(here)
    return parent, pending


def _rmdir(name: str, parent: int, problems: list[OSError]) -> None:
    try:
        os.rmdir(name, dir_fd=parent)
    except OSError as error:
        _note(error, problems)


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino
