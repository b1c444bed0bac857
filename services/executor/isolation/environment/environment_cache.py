"""The environments on disk.

    DIGEST.json     names the folder of the finished environment; its mtime is the last use
    DIGEST.lock     is held by the process that builds or removes the environment
    DIGEST.NONCE/   an environment; unfinished or abandoned, unless DIGEST.json names it
    DIGEST.NONCE/   also where the packages of one are built, until that is done

An environment is built where it stays, because installed packages remember their path, and under a name that
was never used, so that no late process can write into it.  It is finished when its DIGEST.json appears, by
one rename.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import re
import secrets
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from services.executor.isolation.common import directory

LOCK_POLL_SECONDS = 0.05
_OURS = re.compile(r"([0-9a-f]{64})\.(?:json|lock|retired|new|[0-9a-f]{8})")
_FOLDER = re.compile(r"[0-9a-f]{64}\.[0-9a-f]{8}")


class EnvironmentCache:
    """The environments in one folder, which several processes may share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()

    def find(self, digest: str) -> Path | None:
        """The interpreter of a finished, usable environment, which counts as used now; otherwise None."""
        folder = self._finished(digest)
        if folder is None:
            return None
        python = folder / "bin" / "python"
        return python if self.touch(digest, python) else None

    def touch(self, digest: str, python: Path) -> bool:
        """Record that an environment is used now.  Returns False if it is gone or damaged."""
        try:
            os.utime(self._marker(digest))
        except OSError:
            return False
        return os.access(python, os.X_OK)

    @contextlib.asynccontextmanager
    async def locked(self, digest: str) -> AsyncIterator[None]:
        """Hold the lock on an environment: nobody else builds or removes it meanwhile."""
        self._folder.mkdir(parents=True, exist_ok=True)
        # The holder may be another process, so there is no event to wait for.
        while (lock := self._try_lock(digest)) is None:  # noqa: ASYNC110
            await asyncio.sleep(LOCK_POLL_SECONDS)
        try:
            yield
        finally:
            os.close(lock)

    def installed(self, digest: str) -> list[str]:
        """The packages in a finished environment, as they were recorded when it was built."""
        try:
            return list(json.loads(self._marker(digest).read_bytes())["installed"])
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def new_folder(self, digest: str) -> Path:
        """A folder to build in, with a name that was never used.  Needs the lock, as the next two do."""
        return self._folder / f"{digest}.{secrets.token_hex(4)}"

    def publish(self, digest: str, folder: Path, about: Mapping[str, Any]) -> None:
        """Make this folder the environment; `about` is for people who read the file."""
        new = self._folder / f"{digest}.new"
        new.write_text(json.dumps({"folder": folder.name, **about}, indent=2) + "\n")
        new.replace(self._marker(digest))

    def sweep(self, digest: str) -> None:
        """Remove what dead processes left of builds and removals, unless a process uses it."""
        for suffix in ("new", "retired"):
            (self._folder / f"{digest}.{suffix}").unlink(missing_ok=True)
        finished = self._finished(digest)
        folders = [path for path in self._folder.glob(f"{digest}.*") if _FOLDER.fullmatch(path.name)]
        for folder in set(folders) - {finished} - in_use(folders):
            _remove(folder)

    def prune(self, unused_for_seconds: float) -> list[str]:
        """Remove the environments that nobody has used for so long, and return their digests.

        One that is being built, or that a process uses, stays.  What is left of dead builds is removed.
        """
        removed: list[str] = []
        for digest in self._digests():
            lock = self._try_lock(digest)
            if lock is None:
                continue
            try:
                if self._retire(digest, time.time() - unused_for_seconds):
                    removed.append(digest)
                self.sweep(digest)
                self._drop_lock(digest)
            finally:
                os.close(lock)
        return removed

    # -- one environment --------------------------------------------------------------

    def _marker(self, digest: str) -> Path:
        return self._folder / f"{digest}.json"

    def _finished(self, digest: str) -> Path | None:
        """The folder that the marker names."""
        try:
            name = json.loads(self._marker(digest).read_bytes())["folder"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        ours = isinstance(name, str) and _FOLDER.fullmatch(name) and name.startswith(digest)
        return self._folder / name if ours else None

    def _retire(self, digest: str, too_old: float) -> bool:
        """Withdraw an environment that was last used before `too_old`, unless a process uses it."""
        marker, retired = self._marker(digest), self._folder / f"{digest}.retired"
        folder = self._finished(digest)
        try:
            if marker.stat().st_mtime > too_old or (folder and in_use([folder])):
                return False
            marker.rename(retired)
            # A process that touched it before the rename may rely on it; after it, nobody can touch it.
            if retired.stat().st_mtime > too_old:
                retired.rename(marker)
                return False
        except FileNotFoundError:
            return False
        return True

    def _digests(self) -> list[str]:
        try:
            names = [path.name for path in self._folder.iterdir()]
        except FileNotFoundError:
            return []
        return sorted({match[1] for name in names if (match := _OURS.fullmatch(name))})

    # -- locks ------------------------------------------------------------------------

    def _try_lock(self, digest: str) -> int | None:
        """The descriptor of the lock, or None if another holds it.  Closing it releases the lock."""
        path = self._folder / f"{digest}.lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The last holder may have removed the file that was opened here.
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)
        return None

    def _drop_lock(self, digest: str) -> None:
        """Remove the file of the lock if nothing else is left of the environment.  The caller holds it."""
        lock = self._folder / f"{digest}.lock"
        if set(self._folder.glob(f"{digest}.*")) == {lock}:
            lock.unlink()


def _remove(folder: Path) -> None:
    """Remove a folder, also one that is too deep for `shutil.rmtree`."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            directory.empty(descriptor)
        finally:
            os.close(descriptor)
        folder.rmdir()


def in_use(folders: Iterable[Path]) -> set[Path]:
    """The folders that are named on the command line of a process."""
    wanted = {folder: os.fsencode(folder) + b"/" for folder in folders}
    found: set[Path] = set()
    for command_line in _command_lines() if wanted else ():
        found.update(folder for folder, path in wanted.items() if path in command_line)
    return found


def _command_lines() -> Iterator[bytes]:
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                yield (process / "cmdline").read_bytes()
