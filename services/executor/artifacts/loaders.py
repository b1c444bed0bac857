"""Opens stores of artifacts by their place, and loads artifacts by reference.

References are relative to the base where a run's artifacts were stored: they stay valid when the
directory is moved and the loader is opened on its new place.
"""

import os
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, Protocol, assert_never
from urllib.parse import unquote

from services.executor.artifacts.blobs import REMOTE_STORES, RETRY_SECONDS, Blobs, StorageType, gathered
from services.executor.artifacts.local_blobs import LocalBlobs
from services.executor.artifacts.modal_volume import ContentCache, ModalVolumeBlobs, VolumeFiles
from services.executor.artifacts.references import (
    CasReference,
    InlineReference,
    RelativeReference,
    parse_reference,
    quoted,
    split_url,
    within,
)
from services.executor.artifacts.sources import chunks_of, open_source
from shared.errors import ArtifactError, ArtifactReferenceError

CACHE_MAX_BYTES: Final = 64_000_000
_KNOWN: Final = ("file", *REMOTE_STORES)
_SCHEME: Final = re.compile(rf"([A-Za-z][A-Za-z0-9+.-]*)://|({'|'.join(_KNOWN)}):")


def open_blobs(place: str | Path) -> Blobs:
    """Return the store at `place`: a directory, `file://`, `s3://`, `gs://`, `az://`, `modal://` or `memory://`.

    It creates nothing and connects to nothing.

    Raises:
        ArtifactError: `place` is none of these.
    """
    directory = local_directory(place)
    if directory is not None:
        return LocalBlobs(directory)
    if _is_modal(str(place)):
        return ModalVolumeBlobs(str(place))
    # Imported here: obstore needs megabytes, and a store in a directory doesn't need obstore.
    from services.executor.artifacts.object_blobs import ObjectBlobs

    return ObjectBlobs(str(place))


def local_directory(place: str | Path) -> Path | None:
    """Return the absolute directory at `place`; None if it is the URL of another store."""
    if isinstance(place, Path):
        return place.absolute()
    match = _SCHEME.match(place)
    if match is None:
        return _directory(place, place)
    scheme = match.group(1)
    if scheme == "file":
        return _from_url(place)
    if scheme in REMOTE_STORES:
        return None
    known = ", ".join(f"{one}://" for one in _KNOWN)
    raise ArtifactError(
        f"{match.group()} is not a store for artifacts; expected a directory or one of {known}"
    )


def _is_modal(place: str) -> bool:
    return place.startswith(f"{StorageType.MODAL}:")


def _from_url(url: str) -> Path:
    parts = split_url(url)
    if (
        parts.netloc not in ("", "localhost")
        or parts.query
        or parts.fragment
        or not parts.path.startswith("/")
    ):
        raise ArtifactError(
            f"{quoted(url)} is not a directory of this machine; expected file:///absolute/path"
        )
    return _directory(unquote(parts.path), url)


def _directory(path: str, place: str) -> Path:
    if not path or "\0" in path:
        raise ArtifactError(f"{quoted(place)} is not a directory's path")
    return Path(path).absolute()


class ArtifactLoader(Protocol):
    """Loads content by reference.  Every method may wait for a disk or a network."""

    def load_bytes(self, reference: str) -> bytes:
        """Return the content.

        Raises:
            ArtifactNotFoundError (a `FileNotFoundError`): there is no such content; names the full place.
            ArtifactCorruptError: a blob doesn't have its address.
            ArtifactReferenceError: the reference can't be read, or leads out of the base.
        """

    def load_text(self, reference: str) -> str:
        """Return the content as text; raise `ArtifactError`, with the position, if it is not UTF-8."""
        content = self.load_bytes(reference)
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as exc:
            raise ArtifactError(
                f"{quoted(reference)} is not UTF-8 text: {exc.reason} at byte {exc.start} "
                f"of {len(content)} (0x{content[exc.start]:02x})"
            ) from exc

    def exists(self, reference: str) -> bool:
        """Return whether the content exists, unverified.  Raises `ArtifactReferenceError`."""


class CasArtifactLoader(ArtifactLoader):
    """Loads blobs and inline content; it has no base for relative references."""

    def __init__(self, blobs: Blobs) -> None:
        self.blobs = blobs

    def load_bytes(self, reference: str) -> bytes:
        with self.open(reference) as chunks:
            return gathered(chunks, None, reference)

    @contextmanager
    def open(self, reference: str) -> Iterator[Iterator[bytes]]:
        """Yield the content in chunks; the last chunk of a blob only if the whole blob is verified."""
        match parse_reference(reference):
            case CasReference(sha256):
                with self.blobs.open(sha256) as chunks:
                    yield chunks
            case InlineReference() as inline:
                yield iter((inline.decode(),))
            case RelativeReference(path):
                with self._file(path) as chunks:
                    yield chunks
            case other:
                assert_never(other)

    def exists(self, reference: str) -> bool:
        match parse_reference(reference):
            case CasReference(sha256):
                return self.blobs.exists(sha256)
            case InlineReference():
                return True
            case RelativeReference(path):
                return self._has_file(path)
            case other:
                assert_never(other)

    @contextmanager
    def _file(self, path: str) -> Iterator[Iterator[bytes]]:
        raise ArtifactReferenceError(f"{quoted(path)} is relative, and {self.blobs.base} has only blobs")
        yield

    def _has_file(self, path: str) -> bool:
        with self._file(path):
            return True


class LocalArtifactLoader(CasArtifactLoader):
    """Loads files below the directory `base`, and blobs from the `sha256` tree in it."""

    def __init__(self, base: str | Path) -> None:
        super().__init__(LocalBlobs(base))

    @contextmanager
    def _file(self, path: str) -> Iterator[Iterator[bytes]]:
        place = within(self.blobs.base, path)
        with open_source(Path(place)) as file:
            yield chunks_of(file, place)

    def _has_file(self, path: str) -> bool:
        return os.path.isfile(within(self.blobs.base, path))  # noqa: PTH113, Path.is_file raises for a name that is too long


class ObjectStoreArtifactLoader(CasArtifactLoader):
    """Loads objects below a URL such as `s3://bucket/prefix`, and blobs from the `sha256` tree there."""

    def __init__(self, url: str, retry_seconds: float = RETRY_SECONDS) -> None:
        # Imported here because of obstore; see `open_blobs`.
        from services.executor.artifacts.object_blobs import Bucket, ObjectBlobs

        super().__init__(ObjectBlobs(url, retry_seconds))
        self._bucket = Bucket(url, retry_seconds)

    @contextmanager
    def _file(self, path: str) -> Iterator[Iterator[bytes]]:
        with closing(self._bucket.get(path)) as chunks:
            yield chunks

    def _has_file(self, path: str) -> bool:
        return self._bucket.head(path) is not None


class ModalVolumeArtifactLoader(CasArtifactLoader):
    """Loads files of a Modal volume below a URL such as `modal://volume/prefix`, and blobs there.

    Args:
        url: of the place on the volume.
        cache_max_bytes: how much of the blobs that were loaded last is kept in memory.  Files are not
            kept, since they may change.
    """

    def __init__(self, url: str, cache_max_bytes: int = CACHE_MAX_BYTES) -> None:
        super().__init__(ModalVolumeBlobs(url))
        self._files = VolumeFiles(url)
        self._cache = ContentCache(cache_max_bytes)

    def load_bytes(self, reference: str) -> bytes:
        kept = self._cache.get(reference)
        if kept is not None:
            return kept
        content = super().load_bytes(reference)
        if isinstance(parse_reference(reference), CasReference):
            self._cache.put(reference, content)
        return content

    @contextmanager
    def _file(self, path: str) -> Iterator[Iterator[bytes]]:
        yield self._files.get(path)

    def _has_file(self, path: str) -> bool:
        return self._files.head(path) is not None


def loader_for(storage_base: str | Path, storage_type: str | None = None) -> CasArtifactLoader:
    """Return the loader for a storage base and type of a result; raise `ArtifactError` if they contradict."""
    directory = local_directory(storage_base)
    loader: CasArtifactLoader
    if directory is not None:
        loader = LocalArtifactLoader(directory)
    elif _is_modal(str(storage_base)):
        loader = ModalVolumeArtifactLoader(str(storage_base))
    else:
        loader = ObjectStoreArtifactLoader(str(storage_base))
    if storage_type is not None and storage_type != loader.blobs.storage_type:
        actual = loader.blobs.storage_type
        raise ArtifactError(f"{storage_base} is storage of type {actual}, not {quoted(storage_type)}")
    return loader
