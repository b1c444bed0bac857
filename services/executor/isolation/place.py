"""Where one process may write: a directory of its own, with its temp directory and its artifacts in it."""

import asyncio
import itertools
import os
import shutil
import stat
from pathlib import Path
from typing import Self

TEMP = "temp"
_names = itertools.count(1)


class Place:
    """A directory that is one process' own; those of a template's forks lie in the template's.

    The process makes it, so there may be nothing there yet.  Making one and removing it
    costs as much as all the rest of a fork, so one that a fork has left as it was is
    handed on to the next.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temp = f"{path}/{TEMP}"
        self.artifacts = f"{path}/artifacts"
        self._spares: list[Place] = []

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
        """Whether it is there and nothing was left in it."""
        try:
            return (
                [entry.name for entry in self.path.iterdir()] == [TEMP]
                and not any(Path(self.temp).iterdir())
                and stat.S_IMODE(os.lstat(self.path).st_mode) == 0o700
                and os.lstat(self.temp).st_mode == stat.S_IFDIR | 0o700
            )
        except OSError:
            return False

    def remove(self) -> None:
        """Remove all of it."""
        for directory in (self.temp, self.artifacts, str(self.path)):
            remove(directory)


def remove(directory: str) -> None:
    """Remove a directory: at once if it is empty or missing, by a thread if it takes longer.

    Its name is free when this returns: the next run of the process may use it
    while the thread is still at work.
    """
    try:
        Path(directory).rmdir()
    except FileNotFoundError:
        return
    except OSError:
        discarded = f"{directory}.discarded-{next(_names)}"
        Path(directory).rename(discarded)
        asyncio.get_running_loop().run_in_executor(None, shutil.rmtree, discarded, True)
