"""Loading an artifact from wherever it is stored, by reference.

References are relative to the base where a run's artifacts were stored: move
the directory, open the loader on its new place, and everything loads the same.
"""

import os
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, Protocol, assert_never
from urllib.parse import unquote

from services.executor.artifacts.blobs import OBJECT_STORES, PATIENCE_SECONDS, Blobs, gathered
from services.executor.artifacts.local_blobs import LocalBlobs
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

_KNOWN: Final = ("file", *OBJECT_STORES)
_SCHEME: Final = re.compile(rf"([A-Za-z][A-Za-z0-9+.-]*)://|({'|'.join(_KNOWN)}):")


def open_blobs(place: str | Path) -> Blobs:
    """The store at `place`: a directory, `file://`, `s3://`, `gs://`, `az://` or `memory://`.

    Nothing is made or connected to yet.  Raises ArtifactError for a place that means nothing.
    """
    directory = local_directory(place)
    if directory is not None:
        return LocalBlobs(directory)
    # Here, for it brings obstore: megabytes that nobody needs who keeps artifacts in a directory.
    from services.executor.artifacts.object_blobs import ObjectBlobs

    return ObjectBlobs(str(place))


def local_directory(place: str | Path) -> Path | None:
    """The directory that `place` is, absolute; None when it is the URL of an object store."""
    if isinstance(place, Path):
        return place.absolute()
    match = _SCHEME.match(place)
    if match is None:
        return _directory(place, place)
    scheme = match.group(1)
    if scheme == "file":
        return _from_url(place)
    if scheme in OBJECT_STORES:
        return None
    known = ", ".join(f"{one}://" for one in _KNOWN)
    raise ArtifactError(f"{match.group()} is no store for artifacts; a directory is, and {known}")


def _from_url(url: str) -> Path:
    parts = split_url(url)
    if (
        parts.netloc not in ("", "localhost")
        or parts.query
        or parts.fragment
        or not parts.path.startswith("/")
    ):
        raise ArtifactError(f"{quoted(url)} is not a directory here; file:///absolute/path is expected")
    return _directory(unquote(parts.path), url)


def _directory(path: str, place: str) -> Path:
    if not path or "\0" in path:
        raise ArtifactError(f"{quoted(place)} is not a directory's path")
    return Path(path).absolute()


class ArtifactLoader(Protocol):
    """Loads what a reference leads to.  Every method may wait for a disk or a network."""

    def load_bytes(self, reference: str) -> bytes:
        """The content.

        Raises ArtifactNotFoundError (a FileNotFoundError) with the full place
        that was looked at, ArtifactCorruptError for a blob that isn't what its
        address says, and ArtifactReferenceError for a reference that can't be
        read or leads out of the base.
        """

    def load_text(self, reference: str) -> str:
        """The content as UTF-8; ArtifactError, with the position, when it isn't."""
        content = self.load_bytes(reference)
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as exc:
            raise ArtifactError(
                f"{quoted(reference)} is not UTF-8 text: {exc.reason} at byte {exc.start} "
                f"of {len(content)} (0x{content[exc.start]:02x})"
            ) from exc

    def exists(self, reference: str) -> bool:
        """Whether something is there, unverified; a bad reference is an error all the same."""


class CasArtifactLoader(ArtifactLoader):
    """Loads content by its address, and inline content; there is no base for relative references."""

    def __init__(self, blobs: Blobs) -> None:
        self.blobs = blobs

    def load_bytes(self, reference: str) -> bytes:
        with self.open(reference) as chunks:
            return gathered(chunks, None, reference)

    @contextmanager
    def open(self, reference: str) -> Iterator[Iterator[bytes]]:
        """The content in chunks; of a blob, the last one comes only when all of it is right."""
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
        raise ArtifactReferenceError(
            f"{quoted(path)} is relative, and {self.blobs.base} only knows addresses"
        )
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
        return os.path.isfile(within(self.blobs.base, path))  # noqa: PTH113, no name is too long for it


class ObjectStoreArtifactLoader(CasArtifactLoader):
    """Loads objects below a URL such as `s3://bucket/prefix`, and blobs from the `sha256` tree there."""

    def __init__(self, url: str, patience_seconds: float = PATIENCE_SECONDS) -> None:
        # Here, for they bring obstore; see `open_blobs`.
        from services.executor.artifacts.object_blobs import ObjectBlobs, Remote

        super().__init__(ObjectBlobs(url, patience_seconds))
        self._remote = Remote(url, patience_seconds)

    @contextmanager
    def _file(self, path: str) -> Iterator[Iterator[bytes]]:
        with closing(self._remote.get(path)) as chunks:
            yield chunks

    def _has_file(self, path: str) -> bool:
        return self._remote.head(path) is not None


def loader_for(storage_base: str | Path, storage_type: str | None = None) -> CasArtifactLoader:
    """The loader for what a result says of its storage; ArtifactError when the two contradict each other."""
    directory = local_directory(storage_base)
    loader = (
        ObjectStoreArtifactLoader(str(storage_base)) if directory is None else LocalArtifactLoader(directory)
    )
    if storage_type is not None and storage_type != loader.blobs.storage_type:
        actual = loader.blobs.storage_type
        raise ArtifactError(f"{storage_base} is storage of type {actual}, not {quoted(storage_type)}")
    return loader
