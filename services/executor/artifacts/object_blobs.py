"""Blobs in an object store: S3, Google Cloud Storage, Azure, or this process's memory, through obstore.

    s3://bucket/prefix           credentials, endpoint and region from AWS_*
    gs://bucket/prefix           from GOOGLE_*
    az://container/prefix        from AZURE_*
    memory://name                in this process; gone when it ends

Credentials come from the environment only, so that a URL may be recorded and shown.
"""

import re
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

import obstore
from obstore.exceptions import BaseError
from obstore.store import MemoryStore, from_url

from services.executor.artifacts.blobs import (
    CHUNK_BYTES,
    OBJECT_STORES,
    RETRY_SECONDS,
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
    # These exist for type checkers only.
    from obstore import ObjectMeta
    from obstore.store import ClientConfig, ObjectStore

PART_BYTES: Final = 8 << 20
"""S3 takes at most 10,000 parts, so an object may have 80 GB.  One part is sent in one request."""

_PARTS_AT_ONCE: Final = 3
_CLIENT: Final["ClientConfig"] = {
    # Only single reads are limited: a large object may take any time.
    "timeout": timedelta(days=1),
    "read_timeout": timedelta(seconds=60),
    # An endpoint with http:// in the environment is intended.
    "allow_http": True,
}
_CODE: Final = re.compile(r"<Code>([^<]*)</Code>")
_MESSAGE: Final = re.compile(r"<Message>([^<]*)</Message>")
_REASON_CHARS: Final = 300
_KEY: Final = re.compile(r"sha256/([0-9a-f]{2})/(\1[0-9a-f]{62})")
_memories: Final[dict[str, MemoryStore]] = {}


class ObjectBlobs(Blobs):
    """Blobs below a URL such as `s3://bucket/prefix`.

    `put` reads the content twice: the address must be known before the first byte is sent, and the
    bytes that are sent are verified against it, so that a source that changes meanwhile is refused.
    It always sends: verifying an existing blob would cost as much.  Uploads that a crash interrupts
    are deleted by the bucket's own lifecycle rule for incomplete multipart uploads.

    An object store has no locks.  A put of the same blob is lost if it comes between a collection's
    last look at the blob's age and the deletion, one request later.

    Args:
        retry_seconds: how long a request is repeated while the server can't be reached.
    """

    def __init__(self, url: str, retry_seconds: float = RETRY_SECONDS) -> None:
        self._bucket = Bucket(url, retry_seconds)

    @property
    def storage_type(self) -> StorageType:
        return self._bucket.storage_type

    @property
    def base(self) -> str:
        return self._bucket.url

    def place(self, sha256: str) -> str:
        return self._bucket.place(_key(sha256))

    def put(self, source: Source, *, expected_sha256: str | None = None) -> Blob:
        name = named(source)
        with open_source(source) as opened, rewindable(opened, name) as file:
            start = file.tell()
            blob = digest_of(chunks_of(file, name))
            require(blob, expected_sha256, name)
            file.seek(start)
            same = verified(chunks_of(file, name), blob.sha256, f"{name}, changed while it was stored,")
            self._bucket.put(_key(blob.sha256), blob.size_bytes, same)
        self._require_stored(blob)
        return blob

    @contextmanager
    def open(self, sha256: str) -> Iterator[Iterator[bytes]]:
        with closing(self._bucket.get(_key(sha256))) as chunks:
            yield verified(chunks, sha256, self.place(sha256))

    def size(self, sha256: str) -> int:
        found = self._bucket.head(_key(sha256))
        if found is None:
            raise ArtifactNotFoundError(f"{self.place(sha256)}: there is no such blob")
        return found["size"]

    def exists(self, sha256: str) -> bool:
        return self._bucket.head(_key(sha256)) is not None

    def delete(self, sha256: str, *, unless_put_after: datetime | None = None) -> bool:
        found = self._bucket.head(_key(sha256))
        if found is None or (unless_put_after is not None and found["last_modified"] > unless_put_after):
            return False
        self._bucket.delete(_key(sha256))
        return True

    def all(self) -> Iterator[StoredBlob]:
        for key, found in self._bucket.list("sha256"):
            if match := _KEY.fullmatch(key):
                yield StoredBlob(match.group(2), found["size"], found["last_modified"])

    def clear_leftovers(self, before: datetime, *, dry_run: bool = False) -> int:
        return 0

    def _require_stored(self, blob: Blob) -> None:
        stored_bytes = self.size(blob.sha256)
        if stored_bytes != blob.size_bytes:
            raise ArtifactError(
                f"{self.place(blob.sha256)} has {stored_bytes} bytes after {blob.size_bytes} were sent"
            )


class Bucket:
    """The objects below a URL.

    Every error is an `ArtifactError` that names the object's full URL.
    """

    def __init__(self, url: str, retry_seconds: float = RETRY_SECONDS) -> None:
        self.storage_type = _storage_type(url)
        self.url = url.rstrip("/")
        self._store = _connect(self.url, self.storage_type, retry_seconds)
        # All memory stores of one name are one store, so the rest of the URL is a prefix in it.
        inside_memory = self.storage_type is StorageType.MEMORY
        self._prefix = split_url(url).path.strip("/") if inside_memory else ""

    def place(self, key: str) -> str:
        """Return the URL of an object."""
        return f"{self.url}/{key}"

    def get(self, key: str) -> Generator[bytes, None, None]:
        """Yield the object's content in chunks of about 1 MiB."""
        with self._translated(key):
            for piece in obstore.get(self._store, self._key(key)).stream(CHUNK_BYTES):
                # A memory store returns the content in one piece.
                for start in range(0, len(piece), CHUNK_BYTES):
                    yield piece[start : start + CHUNK_BYTES]

    def head(self, key: str) -> "ObjectMeta | None":
        """Return the object's metadata; None if it does not exist."""
        with self._translated(key):
            try:
                return obstore.head(self._store, self._key(key))
            except FileNotFoundError:
                return None

    def put(self, key: str, size_bytes: int, content: Iterable[bytes]) -> None:
        """Store the content under the key, whole or not at all.  Errors of `content` are raised unchanged."""
        with self._translated(key):
            if size_bytes <= PART_BYTES:
                obstore.put(self._store, self._key(key), b"".join(content))
            else:
                obstore.put(
                    self._store,
                    self._key(key),
                    iter(content),
                    chunk_size=PART_BYTES,
                    max_concurrency=_PARTS_AT_ONCE,
                )

    def delete(self, key: str) -> None:
        """Delete the object, if it exists."""
        with self._translated(key):
            try:
                obstore.delete(self._store, self._key(key))
            except FileNotFoundError:
                return

    def list(self, prefix: str) -> Iterator[tuple[str, "ObjectMeta"]]:
        """Yield the key and the metadata of each object below `prefix`."""
        with self._translated(prefix):
            for batch in obstore.list(self._store, self._key(prefix)):
                for found in batch:
                    yield found["path"].removeprefix(self._key("")), found

    def _key(self, key: str) -> str:
        return f"{self._prefix}/{key}" if self._prefix else key

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        try:
            yield
        except ArtifactError:
            raise
        except FileNotFoundError as exc:
            raise ArtifactNotFoundError(
                f"{self.place(key)}: there is no such object ({_reason(exc)})"
            ) from exc
        except (BaseError, OSError, ValueError) as exc:
            raise ArtifactError(f"{self.place(key)}: {_reason(exc)}") from exc


def _storage_type(url: str) -> StorageType:
    parts = split_url(url)
    if parts.scheme not in OBJECT_STORES:
        raise ArtifactError(
            f"{parts.scheme}:// is not an object store; expected one of {', '.join(OBJECT_STORES)}"
        )
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        # Not quoted: it may contain a secret.
        raise ArtifactError(
            f"the {parts.scheme}:// URL may have only bucket and prefix; put credentials in the environment"
        )
    if not parts.netloc:
        raise ArtifactError(f"{url} has no bucket; expected {parts.scheme}://bucket/prefix")
    return StorageType(parts.scheme)


def _connect(url: str, storage_type: StorageType, retry_seconds: float) -> "ObjectStore":
    if storage_type is StorageType.MEMORY:
        return _memories.setdefault(split_url(url).netloc, MemoryStore())
    try:
        return from_url(
            url, client_options=_CLIENT, retry_config={"retry_timeout": timedelta(seconds=retry_seconds)}
        )
    except (BaseError, ValueError) as exc:
        raise ArtifactError(f"{url} can't be opened: {_reason(exc)}") from exc


def _reason(exc: Exception) -> str:
    """Return the server's own code and message if there are any, else the first line of the error."""
    text = str(exc)
    code, message = _CODE.search(text), _MESSAGE.search(text)
    if code and message:
        return f"{code.group(1)}: {message.group(1)}"[:_REASON_CHARS]
    return text.partition("\n")[0].partition("<")[0].strip(" :")[:_REASON_CHARS]


def _key(sha256: str) -> str:
    check_sha256(sha256)
    return f"sha256/{sha256[:2]}/{sha256}"
