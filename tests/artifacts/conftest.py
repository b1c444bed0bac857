"""Stores of every kind: in a directory, in memory, on an S3 server and on a Modal server of the tests."""

import io
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import modal
import pytest

from services.executor.artifacts import Blobs, open_blobs
from services.executor.artifacts.local_blobs import LocalBlobs
from services.executor.artifacts.modal_volume import VolumeFiles
from services.executor.artifacts.object_blobs import Bucket
from tests.s3 import s3_endpoint, s3_url

__all__ = ["s3_endpoint", "s3_url"]


@dataclass(frozen=True, slots=True)
class Place:
    """A store of blobs, and ways to damage it."""

    url: str
    blobs: Blobs

    def spoil(self, sha256: str, content: bytes) -> None:
        """Replace the content under an address."""
        if isinstance(self.blobs, LocalBlobs):
            path = Path(self.blobs.place(sha256))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            path.write_bytes(content)
        else:
            write(self.url, f"sha256/{sha256[:2]}/{sha256}", content)

    def litter(self) -> None:
        """Put files or objects into the store that are not blobs."""
        keys = ["sha256/ab/readme.txt", "sha256/cd/" + "ab" * 32, "sha256/ab/" + "AB" * 32, "metrics.csv"]
        for key in keys:
            if isinstance(self.blobs, LocalBlobs):
                path = self.blobs.directory / key
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"no blob")
            else:
                write(self.url, key, b"no blob")


def write(url: str, path: str, content: bytes) -> None:
    """Write an object, or a file on a volume."""
    if url.startswith("modal:"):
        VolumeFiles(url).put(path, io.BytesIO(content))
    else:
        Bucket(url).put(path, len(content), [content])


def url_of(kind: str, request: pytest.FixtureRequest) -> str:
    """Return an unused place of that kind."""
    match kind:
        case "local":
            return str(request.getfixturevalue("tmp_path") / "blobs")
        case "file":
            return f"file://{request.getfixturevalue('tmp_path')}/some%20blobs"
        case "memory":
            return f"memory://{uuid4().hex}"
        case "memory-prefix":
            return f"memory://{uuid4().hex}/some/prefix"
        case "modal" | "modal-prefix":
            request.getfixturevalue("modal_server")
            name = f"volume-{uuid4().hex}"
            modal.Volume.from_name(name, create_if_missing=True, version=2).hydrate()
            return f"modal://{name}/some/prefix" if kind == "modal-prefix" else f"modal://{name}"
        case _:
            return str(request.getfixturevalue("s3_url"))


ON_MODAL = [pytest.param(one, marks=pytest.mark.xdist_group("modal")) for one in ("modal", "modal-prefix")]
"""One process of the tests starts the Modal server."""


@pytest.fixture(params=["local", "file", "memory", "memory-prefix", "s3", *ON_MODAL])
def place(request: pytest.FixtureRequest) -> Place:
    """An empty store, of each kind in turn."""
    url = url_of(request.param, request)
    return Place(url, open_blobs(url))


@pytest.fixture
def blobs(place: Place) -> Blobs:
    """The store itself."""
    return place.blobs


@pytest.fixture
def local(tmp_path: Path) -> LocalBlobs:
    """A store in a directory that does not exist yet."""
    return LocalBlobs(tmp_path / "blobs")
