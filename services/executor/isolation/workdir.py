"""Where processes may write: a directory of the pool's own, and one in it for each process."""

import asyncio
import contextlib
import fcntl
import itertools
import os
import stat
import tempfile
from pathlib import Path
from typing import IO, Self

import structlog

from services.executor.isolation.common import directory

PREFIX = "fullsend-"
LOCK = "owner.lock"
TEMP = "temp"
_names = itertools.count(1)

log = structlog.get_logger(__name__)


class PoolDirectory:
    """A directory of one pool.

    Its lock is held while the pool's process lives, so a directory whose lock is free can be removed.
    """

    def __init__(self, path: Path, lock: IO[str]) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def create(cls) -> Self:
        """Make a new one."""
        while True:
            path = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
            lock = (path / LOCK).open("w")
            fcntl.flock(lock, fcntl.LOCK_EX)
            if path.exists():  # `remove_abandoned` of another service did not come in between
                return cls(path, lock)
            lock.close()

    def remove_if_empty(self) -> bool:
        """Remove it if nothing is left in it; whether it is gone."""
        try:
            (self.path / LOCK).unlink()
            self.path.rmdir()
        except OSError:
            return False
        self._lock.close()
        return True

    def remove(self) -> None:
        """Remove it with everything in it; blocks."""
        remove_tree(str(self.path))
        self._lock.close()


def remove_abandoned() -> None:
    """Remove the directories of pools whose services were killed; blocks."""
    for path in Path(tempfile.gettempdir()).resolve().glob(f"{PREFIX}*"):
        try:
            with (path / LOCK).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove_tree(str(path))
        except OSError:
            continue  # in use, or not a pool's


class Workdir:
    """The directory of one process, with its temp directory and its artifacts.

    The process makes it, so it need not exist.  Those of a template's forks lie in the template's.  Making
    and removing one takes as long as the rest of a fork, so one that a fork left as it was made is handed
    on to the next fork.
    """

    def __init__(self, path: Path, settled_ns: int = directory.SETTLED_NS) -> None:
        self.path = path
        self._settled_ns = settled_ns
        self.temp = f"{path}/{TEMP}"
        self.artifacts = f"{path}/{directory.ARTIFACTS}"
        self._spares: list[Workdir] = []
        self._stamps: tuple[tuple[int, int] | None, ...] = (None, None)

    @classmethod
    def within(cls, parent: Path) -> Self:
        """One with a name that was never used."""
        return cls(parent / str(next(_names)))

    def for_fork(self) -> "Workdir":
        """One for a fork of the process that this one belongs to."""
        return self._spares.pop() if self._spares else Workdir.within(self.path)

    def take_back(self, workdir: "Workdir") -> None:
        """A fork is gone with all its processes: keep its directory for the next one, or remove it."""
        if workdir.is_as_made():
            self._spares.append(workdir)
        else:
            workdir.remove()

    def is_as_made(self) -> bool:
        """Whether it exists and is empty.  If its time stamps are the same as before, it is not read."""
        try:
            stats = os.lstat(self.path), os.lstat(self.temp)
            if tuple((status.st_ino, status.st_ctime_ns) for status in stats) == self._stamps:
                return True
            top = directory.open_at(str(self.path))
            try:
                found = directory.names(top) == [TEMP] and _is_private(top) and _is_empty(top, TEMP)
            finally:
                os.close(top)
        except OSError:
            return False
        stamps = tuple(directory.lasting_stamp(status, self._settled_ns) for status in stats)
        self._stamps = stamps if found else (None, None)
        return found

    def remove(self) -> None:
        """Remove it with everything in it."""
        with contextlib.suppress(OSError):  # it was never made, or a link is in its place
            top = directory.open_at(str(self.path))
            try:
                for name in (TEMP, directory.ARTIFACTS):
                    with contextlib.suppress(OSError):
                        os.rmdir(name, dir_fd=top)
            finally:
                os.close(top)
        remove(str(self.path))


def remove(path: str) -> None:
    """Remove a directory: at once if it is empty or missing, otherwise in a thread.

    In both cases its name is free when this returns, so the next run of the process may use it.  If a tool
    has put something else in its place, that is removed, and no link is followed.  What can't be removed
    stays, and is logged.
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
        _log_not_removed(path, error)


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
    """Remove a directory with everything in it, following no link; blocks."""
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
        _log_not_removed(path, error)


def _empty(parent: int, name: str) -> None:
    descriptor = directory.open_below(name, parent)
    try:
        directory.empty(descriptor)
    finally:
        os.close(descriptor)


def _log_not_removed(path: str, error: OSError) -> None:
    log.warning("directory.not_removed", path=path, error=str(error))


def _is_private(descriptor: int) -> bool:
    return stat.S_IMODE(os.fstat(descriptor).st_mode) == 0o700


def _is_empty(parent: int, name: str) -> bool:
    """Whether it is a directory that is private to its owner, with nothing in it."""
    descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    try:
        return _is_private(descriptor) and not directory.names(descriptor)
    finally:
        os.close(descriptor)
