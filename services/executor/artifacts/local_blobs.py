"""Blobs in a directory: each is written as a draft, made durable, and renamed.

    <directory>/sha256/ab/<64 digits>    the blobs, read-only
    <directory>/tmp/                     drafts; garbage collection deletes those that a crash left
    <directory>/lock                     locked shared to rename a draft, exclusive to delete a blob

The lock makes a collection safe beside a writer of the same blob: a delete checks the blob's age and
removes it while no writer can renew it.  On a file system without locks, a put between the two steps
is lost.
"""

import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from errno import EDQUOT, ENOLCK, ENOSPC, ENOSYS, ENOTSUP
from pathlib import Path
from typing import BinaryIO, Final

from services.executor.artifacts.blobs import Blob, Blobs, Source, StorageType, StoredBlob, require, verified
from services.executor.artifacts.references import check_sha256
from services.executor.artifacts.sources import (
    chunks_of,
    named,
    open_regular,
    open_source,
    size_of,
    write_all,
)
from shared.errors import ArtifactCorruptError, ArtifactError, ArtifactNotFoundError

READ_ONLY: Final = 0o444
_BLOB_NAME: Final = re.compile(r"[0-9a-f]{64}")


class LocalBlobs(Blobs):
    """Blobs below `directory`, which is created with the first put."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory).absolute()
        self._blobs = self.directory / "sha256"
        self._drafts = self.directory / "tmp"

    @property
    def storage_type(self) -> StorageType:
        return StorageType.LOCAL

    @property
    def base(self) -> str:
        return str(self.directory)

    def place(self, sha256: str) -> str:
        return str(self._path(sha256))

    def put(self, source: Source, *, expected_sha256: str | None = None) -> Blob:
        with open_source(source) as file, self._disk(source), self._draft() as (draft, name):
            blob = write_all(draft, chunks_of(file, named(source)))
            require(blob, expected_sha256, named(source))
            os.fchmod(draft.fileno(), READ_ONLY)
            os.fsync(draft.fileno())
            self._publish(name, self._path(blob.sha256))
        return blob

    @contextmanager
    def open(self, sha256: str) -> Iterator[Iterator[bytes]]:
        place = self.place(sha256)
        with self._file(sha256) as file:
            yield verified(chunks_of(file, place), sha256, place)

    def size(self, sha256: str) -> int:
        with self._file(sha256) as file:
            return os.fstat(file.fileno()).st_size

    def exists(self, sha256: str) -> bool:
        return self._status(self._path(sha256)) is not None

    def delete(self, sha256: str, *, unless_put_after: datetime | None = None) -> bool:
        path = self._path(sha256)
        with self._disk(), suppress(FileNotFoundError), self._locked(fcntl.LOCK_EX):
            if unless_put_after is None or _modified_at(path.lstat()) <= unless_put_after:
                path.unlink()
                return True
        return False

    def all(self) -> Iterator[StoredBlob]:
        with self._disk():
            for shard in _entries(self._blobs):
                for path in _entries(shard):
                    found = self._status(path) if _is_blob(path) else None
                    if found:
                        yield StoredBlob(path.name, found.st_size, _modified_at(found))

    def clear_leftovers(self, before: datetime, *, dry_run: bool = False) -> int:
        freed_bytes = 0
        with self._disk():
            for path in _entries(self._drafts):
                found = self._status(path)
                if found and _modified_at(found) < before:
                    freed_bytes += found.st_size
                    if not dry_run:
                        path.unlink(missing_ok=True)
        return freed_bytes

    # -- steps -------------------------------------------------------------------------

    def _path(self, sha256: str) -> Path:
        check_sha256(sha256)
        return self._blobs / sha256[:2] / sha256

    def _file(self, sha256: str) -> BinaryIO:
        path = self._path(sha256)
        try:
            return open_regular(path)
        except FileNotFoundError as exc:
            raise ArtifactNotFoundError(f"{path}: there is no such blob") from exc
        except OSError as exc:
            raise ArtifactError(f"{path} can't be read: {exc.strerror}") from exc
        except ArtifactError as exc:
            raise ArtifactCorruptError(str(exc)) from exc

    def _status(self, path: Path) -> os.stat_result | None:
        """Return the status of a regular file; None for anything else, and if it has been removed."""
        with self._disk(), suppress(FileNotFoundError, NotADirectoryError):
            found = path.lstat()
            return found if stat.S_ISREG(found.st_mode) else None
        return None

    @contextmanager
    def _draft(self) -> Iterator[tuple[BinaryIO, str]]:
        """Yield a new file and its name; delete it at the end unless it was renamed."""
        self._drafts.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=self._drafts)
        try:
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                yield file, name
        finally:
            Path(name).unlink(missing_ok=True)

    def _publish(self, draft: str, path: Path) -> None:
        """Rename the finished draft to its place, and make that durable."""
        shard = path.parent
        if not shard.is_dir():
            shard.mkdir(parents=True, exist_ok=True)
            for directory in (self.directory, self._blobs):
                _make_durable(directory)
        with self._locked(fcntl.LOCK_SH):
            os.rename(draft, path)  # noqa: PTH104, replaces an existing blob in one step
        _make_durable(shard)

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.flock(lock, how)
            except OSError as exc:
                if exc.errno not in (ENOLCK, ENOSYS, ENOTSUP):
                    raise
            yield
        finally:
            os.close(lock)

    @contextmanager
    def _disk(self, source: Source | None = None) -> Iterator[None]:
        """Turn an `OSError` into an `ArtifactError`; `source` is the content to be stored."""
        try:
            yield
        except ArtifactError:
            raise
        except OSError as exc:
            if exc.errno in (ENOSPC, EDQUOT):
                raise ArtifactError(self._full(source)) from exc
            what = exc.filename2 or exc.filename or self.directory
            raise ArtifactError(f"{what}: {exc.strerror}") from exc

    def _full(self, source: Source | None) -> str:
        there = next(path for path in (self.directory, *self.directory.parents) if path.is_dir())
        free_bytes = shutil.disk_usage(there).free
        size_bytes = None if source is None else size_of(source)
        needed = "more" if size_bytes is None else f"{size_bytes} bytes"
        return (
            f"{self.directory} is full: {needed} are needed and {free_bytes} bytes are free; "
            "delete unreferenced blobs (fullsend artifacts gc), free space, or use another store"
        )


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_blob(path: Path) -> bool:
    return bool(_BLOB_NAME.fullmatch(path.name)) and path.name.startswith(path.parent.name)


def _modified_at(found: os.stat_result) -> datetime:
    return datetime.fromtimestamp(found.st_mtime, UTC)


def _make_durable(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
