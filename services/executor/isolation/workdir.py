"""Where one process may write: a directory of its own, with its temp directory and its artifacts in it."""

import asyncio
import contextlib
import itertools
import os
import stat
from pathlib import Path
from typing import Self

import structlog

from services.executor.isolation.child.tempdir import lasting_stamp
from services.executor.isolation.common import directory

TEMP = "temp"
ARTIFACTS = "artifacts"
_names = itertools.count(1)

log = structlog.get_logger(__name__)


class Place:
    """A directory that is one process' own; those of a template's forks lie in the template's.

    The process makes it, so there may be nothing there yet.  Making one and removing it
    costs as much as all the rest of a fork, so one that a fork has left as it was is
    handed on to the next.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temp = f"{path}/{TEMP}"
        self.artifacts = f"{path}/{ARTIFACTS}"
        self._spares: list[Place] = []
        self._stamps: tuple[tuple[int, int] | None, ...] = (None, None)

    @classmethod
    def within(cls, area: Path) -> Self:
        """One that nobody had before."""
        return cls(area / str(next(_names)))

    def for_fork(self) -> "Place":
        """One for a fork of the process that this one belongs to."""
        return self._spares.pop() if self._spares else Place.within(self.path)

    def take_back(self, place: "Place") -> None:
        """A fork is gone, with all its processes: keep its place for the next one, or remove it."""
        if place.is_as_made():
            self._spares.append(place)
        else:
            place.remove()

    def is_as_made(self) -> bool:
        """Whether it is there and nothing was left in it; told without a look by the stamps it had then."""
        try:
            stats = os.lstat(self.path), os.lstat(self.temp)
            if tuple((status.st_ino, status.st_ctime_ns) for status in stats) == self._stamps:
                return True
            place = directory.open_at(str(self.path))
            try:
                found = directory.names(place) == [TEMP] and _is_private(place) and _is_empty(place, TEMP)
            finally:
                os.close(place)
        except OSError:
            return False
        self._stamps = tuple(map(lasting_stamp, stats)) if found else (None, None)
        return found

    def remove(self) -> None:
        """Remove all of it."""
        with contextlib.suppress(OSError):  # none was made, or a link is in its stead
            place = directory.open_at(str(self.path))
            try:
                for name in (TEMP, ARTIFACTS):
                    with contextlib.suppress(OSError):
                        os.rmdir(name, dir_fd=place)
            finally:
                os.close(place)
        remove(str(self.path))


def remove(path: str) -> None:
    """Remove a directory: at once if it is empty or missing, by a thread if it takes longer.

    Its name is free when this returns: the next run of the process may use it
    while the thread is still at work.  If a tool has put something else in its
    place, that is removed, and no link is followed.  What can't be removed stays.
    """
    above, _, name = path.rpartition("/")
    try:
        parent = directory.open_at(above)
        try:
            _remove_from(parent, above, name)
        finally:
            os.close(parent)
    except FileNotFoundError:
        return
    except OSError as error:
        _stays(path, error)


def _remove_from(parent: int, above: str, name: str) -> None:
    try:
        os.rmdir(name, dir_fd=parent)
    except NotADirectoryError:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return
    except OSError:
        discarded = f"{name}.discarded-{next(_names)}"
        os.rename(name, discarded, src_dir_fd=parent, dst_dir_fd=parent)
        asyncio.get_running_loop().run_in_executor(None, remove_tree, f"{above}/{discarded}")


def remove_tree(path: str) -> None:
    """Remove a directory with all that is in it, following no link; blocks."""
    above, _, name = path.rpartition("/")
    try:
        parent = directory.open_at(above)
        try:
            _empty(parent, name)
            os.rmdir(name, dir_fd=parent)
        finally:
            os.close(parent)
    except FileNotFoundError:
        return
    except OSError as error:
        _stays(path, error)


def _empty(parent: int, name: str) -> None:
    descriptor = directory.open_below(name, parent)
    try:
        directory.empty(descriptor)
    finally:
        os.close(descriptor)


def _stays(path: str, error: OSError) -> None:
    log.warning("directory.not_removed", path=path, error=str(error))


def _is_private(place: int) -> bool:
    return stat.S_IMODE(os.fstat(place).st_mode) == 0o700


def _is_empty(place: int, name: str) -> bool:
    """Whether it is a directory of which only its owner knows, and nothing is in it."""
    descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=place)
    try:
        return _is_private(descriptor) and not directory.names(descriptor)
    finally:
        os.close(descriptor)
