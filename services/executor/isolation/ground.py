"""Where a pool's processes have their temporary directories; what a killed service left is cleared away."""

import fcntl
import tempfile
from pathlib import Path
from typing import IO, Self

from services.executor.isolation.workdir import remove_tree

PREFIX = "fullsend-"
LOCK = "owner.lock"


class Ground:
    """A directory of this pool's own.

    Its lock is held while its owner lives, so that a directory whose lock is
    free is nobody's any more.
    """

    def __init__(self, path: Path, lock: IO[str]) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def claim(cls) -> Self:
        """Make one."""
        while True:
            path = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
            lock = (path / LOCK).open("w")
            fcntl.flock(lock, fcntl.LOCK_EX)
            if path.exists():  # nobody took it for left behind before it was locked
                return cls(path, lock)
            lock.close()

    def give_up_empty(self) -> bool:
        """Remove it if nothing is in it, as is usual; whether it is gone."""
        try:
            (self.path / LOCK).unlink()
            self.path.rmdir()
        except OSError:
            return False
        self._lock.close()
        return True

    def give_up(self) -> None:
        """Remove it with all that is in it; blocks."""
        remove_tree(str(self.path))
        self._lock.close()


def clear() -> None:
    """Remove what services that were killed have left; blocks."""
    for path in Path(tempfile.gettempdir()).resolve().glob(f"{PREFIX}*"):
        try:
            with (path / LOCK).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove_tree(str(path))
        except OSError:
            continue  # somebody's, or not one of ours
