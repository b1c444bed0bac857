"""The interface of a store of blobs, for every kind of store."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from shared.errors import ArtifactCorruptError, ArtifactError

CHUNK_BYTES: Final = 1 << 20
LEFTOVER_AGE: Final = timedelta(days=1)
"""Drafts are deleted at this age; the writer of a younger one may be alive."""

Source = bytes | Path | BinaryIO
"""Content to store.  A stream is read to its end and not closed."""


class StorageType(StrEnum):
    """The kind of a store; recorded beside its base."""

    LOCAL = "local"
    MEMORY = "memory"
    S3 = "s3"
    GS = "gs"
    AZ = "az"
    MODAL = "modal"


REMOTE_STORES: Final = tuple(one for one in StorageType if one is not StorageType.LOCAL)
"""Each is the scheme of its URLs."""

OBJECT_STORES: Final = tuple(one for one in REMOTE_STORES if one is not StorageType.MODAL)

RETRY_SECONDS: Final = 60.0
"""How long a request is repeated while a server can't be reached or reports errors of its own."""


@dataclass(frozen=True, slots=True)
class Blob:
    """The address and the size of content in a store."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A blob as a listing shows it, unverified.  `modified_at` is the time of the last put."""

    sha256: str
    size_bytes: int
    modified_at: datetime


class Blobs(Protocol):
    """Stores content by its SHA-256, once, and verifies it when it is written and when it is read.

    Every method may wait for a disk or a network.

    Raises:
        ArtifactError: any failure; names the full place.
        ArtifactNotFoundError: there is no such blob.
        ArtifactReferenceError: `sha256` is not a SHA-256.
    """

    @property
    def storage_type(self) -> StorageType:
        """The kind of this store."""

    @property
    def base(self) -> str:
        """The absolute directory or the URL of this store; without credentials."""

    def place(self, sha256: str) -> str:
        """Return the path or the URL of a blob, whether it exists or not."""

    def put(self, source: Source, *, expected_sha256: str | None = None) -> Blob:
        """Store the content of `source` and return its address, computed from what was written.

        A duplicate replaces the blob in one step: this repairs a corrupt blob, and renews the blob's age.

        Args:
            expected_sha256: other content raises `ArtifactCorruptError`, and is not stored.
        """

    def open(self, sha256: str) -> AbstractContextManager[Iterator[bytes]]:
        """Yield the content in chunks of about 1 MiB.

        The last chunk is yielded only when the whole content is verified, so that nobody gets the whole
        of corrupt content; `ArtifactCorruptError` is raised instead.
        """

    def size(self, sha256: str) -> int:
        """Return the number of bytes under the address, unverified."""

    def exists(self, sha256: str) -> bool:
        """Return whether there is a blob under the address, unverified."""

    def delete(self, sha256: str, *, unless_put_after: datetime | None = None) -> bool:
        """Delete the blob; return False if it did not exist or was put again after the given time."""

    def all(self) -> Iterator[StoredBlob]:
        """Yield every blob in the store, in no order; other files and objects are left out."""

    def clear_leftovers(self, before: datetime, *, dry_run: bool = False) -> int:
        """Delete the drafts that writers left before then; return the number of their bytes."""

    def read(self, sha256: str, max_bytes: int | None = None) -> bytes:
        """Return the whole content; raise `ArtifactError` if it is longer than `max_bytes`."""
        with self.open(sha256) as chunks:
            return gathered(chunks, max_bytes, self.place(sha256))

    def verify(self, sha256: str) -> Blob:
        """Read the whole content; raise `ArtifactCorruptError` if it doesn't have its address."""
        with self.open(sha256) as chunks:
            return Blob(sha256, sum(len(chunk) for chunk in chunks))


def verified(chunks: Iterable[bytes], sha256: str, place: str) -> Iterator[bytes]:
    """Yield the same chunks, the last one only if all of them together have that SHA-256."""
    digest, size_bytes, held = hashlib.sha256(), 0, b""
    for chunk in chunks:
        digest.update(chunk)
        size_bytes += len(chunk)
        if held:
            yield held
        held = chunk
    require(Blob(digest.hexdigest(), size_bytes), sha256, place)
    if held:
        yield held


def require(found: Blob, sha256: str | None, place: str) -> None:
    """Raise `ArtifactCorruptError` unless the content has that SHA-256; None accepts any content."""
    if sha256 is not None and found.sha256 != sha256:
        raise ArtifactCorruptError(
            f"{place} is corrupt: its {found.size_bytes} bytes have the SHA-256 {found.sha256}, not {sha256}"
        )


def gathered(chunks: Iterable[bytes], max_bytes: int | None, place: str) -> bytes:
    """Return all chunks in one piece; raise `ArtifactError` as soon as they are longer than `max_bytes`."""
    parts, size_bytes = [], 0
    for chunk in chunks:
        size_bytes += len(chunk)
        if max_bytes is not None and size_bytes > max_bytes:
            raise ArtifactError(
                f"{place} is longer than the {max_bytes} bytes that are read at once; stream it"
            )
        parts.append(chunk)
    return b"".join(parts)
