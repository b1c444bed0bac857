"""Blobs in an object store: S3, Google Cloud Storage, Azure, or this process's memory."""

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from typing import Final

from services.executor.artifacts.blobs import (
    PATIENCE_SECONDS,
    Blob,
    Blobs,
    Source,
    StorageType,
    Stored,
    require,
    verified,
)
from services.executor.artifacts.references import check_sha256
from services.executor.artifacts.remote import Remote
from services.executor.artifacts.sources import chunks_of, digest_of, named, open_source, rewindable
from shared.errors import ArtifactError, ArtifactNotFoundError

_KEY: Final = re.compile(r"sha256/([0-9a-f]{2})/(\1[0-9a-f]{62})")


class ObjectBlobs(Blobs):
    """Blobs below a URL such as `s3://bucket/prefix`.

    The content is read twice: the address must be known before the first byte
    is sent, and what is sent is verified against it, so a source that changes
    meanwhile is refused.  Putting always sends: to verify what is there already
    would cost as much.  Uploads that a crash broke off are the bucket's to
    clear, by a lifecycle rule for incomplete multipart uploads.

    A store has no locks, so between a collection's last look at a blob's age and
    its deletion, one request later, a put of the same blob would be lost.
    """

    def __init__(self, url: str, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._remote = Remote(url, patience_seconds)

    @property
    def storage_type(self) -> StorageType:
        return self._remote.storage_type

    @property
    def base(self) -> str:
        return self._remote.url

    def place(self, sha256: str) -> str:
        return self._remote.place(_key(sha256))

    def put(self, source: Source, *, expected_sha256: str | None = None) -> Blob:
        name = named(source)
        with open_source(source) as opened, rewindable(opened, name) as file:
            start = file.tell()
            blob = digest_of(chunks_of(file, name))
            require(blob, expected_sha256, name)
            file.seek(start)
            same = verified(chunks_of(file, name), blob.sha256, f"{name}, changed while it was stored,")
            self._remote.put(_key(blob.sha256), blob.size_bytes, same)
        self._require_stored(blob)
        return blob

    @contextmanager
    def open(self, sha256: str) -> Iterator[Iterator[bytes]]:
        with closing(self._remote.get(_key(sha256))) as chunks:
            yield verified(chunks, sha256, self.place(sha256))

    def size(self, sha256: str) -> int:
        found = self._remote.head(_key(sha256))
        if found is None:
            raise ArtifactNotFoundError(f"{self.place(sha256)}: there is no such blob")
        return found["size"]

    def exists(self, sha256: str) -> bool:
        return self._remote.head(_key(sha256)) is not None

    def delete(self, sha256: str, *, unless_put_after: datetime | None = None) -> bool:
        found = self._remote.head(_key(sha256))
        if found is None or (unless_put_after is not None and found["last_modified"] > unless_put_after):
            return False
        self._remote.delete(_key(sha256))
        return True

    def all(self) -> Iterator[Stored]:
        for key, found in self._remote.list("sha256"):
            if match := _KEY.fullmatch(key):
                yield Stored(match.group(2), found["size"], found["last_modified"])

    def clear_leftovers(self, before: datetime, *, dry_run: bool = False) -> int:
        return 0

    def _require_stored(self, blob: Blob) -> None:
        stored_bytes = self.size(blob.sha256)
        if stored_bytes != blob.size_bytes:
            raise ArtifactError(
                f"{self.place(blob.sha256)} has {stored_bytes} bytes after {blob.size_bytes} were sent"
            )


def _key(sha256: str) -> str:
    check_sha256(sha256)
    return f"sha256/{sha256[:2]}/{sha256}"
