"""Blobs on a Modal volume, through Modal's client.

    modal://volume/prefix        the token is the one that Modal's client finds

Files are written and read by requests, inside Modal's containers too, where the volume is not mounted:
that needs no commit, no reload and no lock.  A file is there as a whole or not at all.
"""

import io
import re
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, BinaryIO, Final

from services.executor.artifacts.blobs import (
    CHUNK_BYTES,
    Blob,
    Blobs,
    Source,
    StorageType,
    StoredBlob,
    require,
    verified,
)
from services.executor.artifacts.references import check_sha256, split_url
from services.executor.artifacts.sources import chunks_of, digest_of, named, open_source, rewindable
from shared.errors import ArtifactError, ArtifactNotFoundError

if TYPE_CHECKING:
    import modal
    from modal.types import FileEntry

MODAL: Final = "modal>=1.6.4,<1.7"
"""The package of Modal's client, as pip reads it."""

_KEY: Final = re.compile(r"sha256/([0-9a-f]{2})/(\1[0-9a-f]{62})")


class ModalVolumeBlobs(Blobs):
    """Blobs below a URL such as `modal://volume/prefix`.

    `put` reads the content twice: the address must be known before the first byte is sent.  A volume has
    no locks; a collection beside a writer is as in an object store.
    """

    def __init__(self, url: str) -> None:
        self._files = VolumeFiles(url)

    @property
    def storage_type(self) -> StorageType:
        return StorageType.MODAL

    @property
    def base(self) -> str:
        return self._files.url

    def place(self, sha256: str) -> str:
        return self._files.place(_key(sha256))

    def put(self, source: Source, *, expected_sha256: str | None = None) -> Blob:
        name = named(source)
        with open_source(source) as opened, rewindable(opened, name) as file:
            start = file.tell()
            blob = digest_of(chunks_of(file, name))
            require(blob, expected_sha256, name)
            file.seek(start)
            self._files.put(_key(blob.sha256), file)
        stored_bytes = self.size(blob.sha256)
        if stored_bytes != blob.size_bytes:
            raise ArtifactError(f"{name} was changed while it was stored in {self.place(blob.sha256)}")
        return blob

    @contextmanager
    def open(self, sha256: str) -> Iterator[Iterator[bytes]]:
        yield verified(self._files.get(_key(sha256)), sha256, self.place(sha256))

    def size(self, sha256: str) -> int:
        found = self._files.head(_key(sha256))
        if found is None:
            raise ArtifactNotFoundError(f"{self.place(sha256)}: there is no such blob")
        return found.size

    def exists(self, sha256: str) -> bool:
        return self._files.head(_key(sha256)) is not None

    def delete(self, sha256: str, *, unless_put_after: datetime | None = None) -> bool:
        found = self._files.head(_key(sha256))
        if found is None or (unless_put_after is not None and _modified_at(found) > unless_put_after):
            return False
        return self._files.delete(_key(sha256))

    def all(self) -> Iterator[StoredBlob]:
        for key, found in self._files.list("sha256"):
            if match := _KEY.fullmatch(key):
                yield StoredBlob(match.group(2), found.size, _modified_at(found))

    def clear_leftovers(self, before: datetime, *, dry_run: bool = False) -> int:
        return 0


class VolumeFiles:
    """The files of a Modal volume below a URL such as `modal://volume/prefix`.

    Every error is an `ArtifactError` that names the file's full URL.
    """

    def __init__(self, url: str) -> None:
        parts = split_url(url)
        if parts.scheme != StorageType.MODAL or parts.query or parts.fragment or "@" in parts.netloc:
            raise ArtifactError(
                "the URL of a Modal volume may have only volume and prefix: modal://volume/prefix"
            )
        if not parts.netloc:
            raise ArtifactError(f"{url} has no volume; expected modal://volume/prefix")
        self.url = url.rstrip("/")
        self.name = parts.netloc
        self._prefix = parts.path.strip("/")

    def place(self, path: str) -> str:
        """Return the URL of a file."""
        return f"{self.url}/{path}"

    def get(self, path: str) -> Iterator[bytes]:
        """Yield the file's content in chunks."""
        with self._translated(path):
            for piece in self._opened().read_file(self._path(path)):
                for start in range(0, len(piece), CHUNK_BYTES):
                    yield piece[start : start + CHUNK_BYTES]

    def head(self, path: str) -> "FileEntry | None":
        """Return what the volume knows of a file; None if it does not exist."""
        try:
            with self._translated(path):
                found = self._opened().listdir(self._path(path))
        except ArtifactNotFoundError:
            return None
        return next((one for one in found if one.path.strip("/") == self._path(path)), None)

    def put(self, path: str, file: BinaryIO) -> None:
        """Write the rest of `file`, and replace a file that is there."""
        with self._translated(path), self._opened().batch_upload(force=True) as batch:
            batch.put_file(_as_source(file), f"/{self._path(path)}")

    def delete(self, path: str) -> bool:
        """Delete a file; return False if there is none."""
        try:
            with self._translated(path):
                self._opened().remove_file(self._path(path))
        except ArtifactNotFoundError:
            return False
        return True

    def list(self, directory: str) -> Iterator[tuple[str, "FileEntry"]]:
        """Yield the path and the entry of each file below a directory."""
        try:
            with self._translated(directory):
                found = self._opened().listdir(self._path(directory), recursive=True)
        except ArtifactNotFoundError:
            return
        for one in found:
            if one.type == one.type.FILE:
                yield one.path.strip("/").removeprefix(self._path("")), one

    def _path(self, path: str) -> str:
        return f"{self._prefix}/{path}" if self._prefix else path

    def _opened(self) -> "modal.Volume":
        try:
            return _volume(self.name)
        except _modal().exception.NotFoundError:
            raise ArtifactError(
                f"{self.url}: there is no such volume; `fullsend modal deploy` makes it"
            ) from None

    @contextmanager
    def _translated(self, path: str) -> Iterator[None]:
        modal = _modal()
        try:
            yield
        except ArtifactError:
            raise
        except (FileNotFoundError, modal.exception.NotFoundError) as exc:
            raise ArtifactNotFoundError(f"{self.place(path)}: there is no such file") from exc
        except (modal.exception.Error, OSError, ValueError) as exc:
            raise ArtifactError(f"{self.place(path)}: {exc or type(exc).__name__}") from exc


class ContentCache:
    """Keeps contents that were read last, up to a number of bytes.

    Args:
        max_bytes: of all contents; a larger content is not kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._size_bytes = 0
        self._contents: OrderedDict[str, bytes] = OrderedDict()

    def get(self, key: str) -> bytes | None:
        """Return a content; None if it is not kept."""
        if key in self._contents:
            self._contents.move_to_end(key)
        return self._contents.get(key)

    def put(self, key: str, content: bytes) -> None:
        """Keep a content, and drop those that were not read for longest."""
        if len(content) > self._max_bytes or key in self._contents:
            return
        self._contents[key] = content
        self._size_bytes += len(content)
        while self._size_bytes > self._max_bytes:
            _, dropped = self._contents.popitem(last=False)
            self._size_bytes -= len(dropped)


def _modal() -> ModuleType:
    try:
        import modal
    except ImportError:
        raise ArtifactError(
            f"modal:// needs another package; install it with: python -m pip install '{MODAL}'"
        ) from None
    return modal


def _as_source(file: BinaryIO) -> Path | io.BytesIO:
    """Return what the client can send the rest of a file from.

    It is no open file: the client would read several blocks at once through copies of its descriptor, which
    share one position, and send their contents mixed up.  Nor is it the memory that a caller may close.
    """
    try:
        if file.tell() == 0:
            return Path(f"/proc/self/fd/{file.fileno()}")
    except OSError:  # it is in memory
        pass
    return io.BytesIO(file.read())


@cache
def _volume(name: str) -> "modal.Volume":
    """Return a volume that exists; asked for once in the life of a process."""
    found: modal.Volume = _modal().Volume.from_name(name)
    found.hydrate()
    return found


def _key(sha256: str) -> str:
    check_sha256(sha256)
    return f"sha256/{sha256[:2]}/{sha256}"


def _modified_at(found: "FileEntry") -> datetime:
    return datetime.fromtimestamp(found.mtime, UTC)
