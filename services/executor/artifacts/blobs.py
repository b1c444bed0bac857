"""What every store of blobs promises, whatever it is made of."""

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
"""What a writer that died left behind is cleared at this age, never earlier: another may still be writing."""

Source = bytes | Path | BinaryIO
"""Where content comes from.  A stream is read to its end and not closed."""


class StorageType(StrEnum):
    """What a store is made of; recorded beside its base."""

    LOCAL = "local"
    MEMORY = "memory"
    S3 = "s3"
    GS = "gs"
    AZ = "az"


OBJECT_STORES: Final = tuple(one for one in StorageType if one is not StorageType.LOCAL)
"""Each is its own scheme."""

PATIENCE_SECONDS: Final = 60.0
"""How long a request is tried again when a server can't be reached or is in trouble."""


@dataclass(frozen=True, slots=True)
class Blob:
    """Content that is in a store: its address and its size."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Stored:
    """What a listing says of a blob, unverified.  `modified_at` is when it was last put."""

    sha256: str
    size_bytes: int
    modified_at: datetime


class Blobs(Protocol):
    """Content by its SHA-256: verified when written and when read, stored once.

    Every method may wait for a disk or a network.  Each raises ArtifactError
    with the full place, ArtifactNotFoundError when no blob is there, and
    ArtifactReferenceError for a `sha256` that isn't one.
    """

    @property
    def storage_type(self) -> StorageType:
        """What this store is made of."""

    @property
    def base(self) -> str:
        """Where it is: an absolute directory or a URL; never has credentials in it."""

    def place(self, sha256: str) -> str:
        """Where the blob is, or would be: a path or a URL."""

    def put(self, source: Source, *, expected_sha256: str | None = None) -> Blob:
        """Store the content of `source` and return its address, computed from what was written.

        A duplicate takes the place of what was there, in one step: so it is
        stored once, what was corrupt is sound again, and its age starts anew.
        With `expected_sha256`, other content raises ArtifactCorruptError and
        nothing is stored.
        """

    def open(self, sha256: str) -> AbstractContextManager[Iterator[bytes]]:
        """The content in chunks of about 1 MiB, verified on the way.

        The last chunk comes only when all of it is right, else
        ArtifactCorruptError: whoever stops there never had the whole of
        corrupt content.
        """

    def size(self, sha256: str) -> int:
        """How many bytes are stored under the address, unverified."""

    def exists(self, sha256: str) -> bool:
        """Whether something is stored under the address, unverified."""

    def delete(self, sha256: str, *, unless_put_after: datetime | None = None) -> bool:
        """Remove the blob; False when it wasn't there, or was put again after the given time."""

    def all(self) -> Iterator[Stored]:
        """Every blob in the store, in no order; what else lies around there is left out."""

    def clear_leftovers(self, before: datetime, *, dry_run: bool = False) -> int:
        """Remove what writers that died left before then; how many bytes that is."""

    def read(self, sha256: str, max_bytes: int | None = None) -> bytes:
        """The whole content; ArtifactError when it is more than `max_bytes`."""
        with self.open(sha256) as chunks:
            return gathered(chunks, max_bytes, self.place(sha256))

    def verify(self, sha256: str) -> Blob:
        """Read all of it and keep nothing; ArtifactCorruptError when it isn't what its address says."""
        with self.open(sha256) as chunks:
            return Blob(sha256, sum(len(chunk) for chunk in chunks))


def verified(chunks: Iterable[bytes], sha256: str, place: str) -> Iterator[bytes]:
    """The same chunks, the last one only when they all together have that SHA-256."""
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
    """Raises ArtifactCorruptError unless the content is what it was said to be; None says nothing."""
    if sha256 is not None and found.sha256 != sha256:
        raise ArtifactCorruptError(
            f"{place} is corrupt: its {found.size_bytes} bytes have the SHA-256 {found.sha256}, not {sha256}"
        )


def gathered(chunks: Iterable[bytes], max_bytes: int | None, place: str) -> bytes:
    """All chunks in one piece; ArtifactError, before memory fills up, when they are more than `max_bytes`."""
    parts, size_bytes = [], 0
    for chunk in chunks:
        size_bytes += len(chunk)
        if max_bytes is not None and size_bytes > max_bytes:
            raise ArtifactError(
                f"{place} has more than the {max_bytes} bytes that are read at once; stream it"
            )
        parts.append(chunk)
    return b"".join(parts)
