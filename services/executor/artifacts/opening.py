"""From what a setting says to a store of blobs."""

import re
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from services.executor.artifacts.blobs import OBJECT_STORES, Blobs
from services.executor.artifacts.local import LocalBlobs
from services.executor.artifacts.references import quoted, split_url
from shared.errors import ArtifactError

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
    from services.executor.artifacts.objects import ObjectBlobs

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
