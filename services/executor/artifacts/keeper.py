"""Keeps artifacts, small ones in their references and others in a store, and reads them."""

import hashlib
import mimetypes
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Final, TypeVar, assert_never
from uuid import uuid4

from services.executor.artifacts.blobs import Blob, Blobs, Source, gathered, require
from services.executor.artifacts.references import (
    CasReference,
    InlineReference,
    Reference,
    RelativeReference,
    check_media_type,
    check_sha256,
    parse_reference,
    quoted,
)
from services.executor.artifacts.sources import chunks_of, named, open_source, write_all
from shared.errors import ArtifactCorruptError, ArtifactError, ArtifactReferenceError

INLINE_MAX_BYTES: Final = 64_000

T = TypeVar("T")

UNKNOWN: Final = "application/octet-stream"

_OTHERS: Final = {
    ".ipynb": "application/x-ipynb+json",
    ".jsonl": "application/jsonl",
    ".md": "text/markdown",
    ".ndjson": "application/x-ndjson",
    ".parquet": "application/vnd.apache.parquet",
    ".toml": "application/toml",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
}
"""Types that Python's table lacks in some versions."""

_COMPRESSED: Final = {
    "gzip": "application/gzip",
    "bzip2": "application/x-bzip2",
    "xz": "application/x-xz",
}


@dataclass(frozen=True, slots=True)
class Artifact:
    """Named bytes that a run left, with the size and the checksum that they must have."""

    name: str
    reference: Reference
    size_bytes: int
    sha256: str
    media_type: str

    def __post_init__(self) -> None:
        check_sha256(self.sha256)
        check_media_type(self.media_type)
        if self.size_bytes < 0:
            raise ArtifactError(f"a size of {self.size_bytes} bytes")
        if isinstance(self.reference, CasReference) and self.reference.sha256 != self.sha256:
            raise ArtifactReferenceError(
                f"{self.reference} and a sha256 of {self.sha256} contradict each other"
            )

    def to_json(self) -> dict[str, str | int]:
        """Return the members that a record has under the artifact's name."""
        return {
            "reference": str(self.reference),
            "size_bytes": self.size_bytes,
            "sha256": self.sha256,
            "media_type": self.media_type,
        }

    @classmethod
    def from_json(cls, name: str, members: Any) -> "Artifact":
        """Return the artifact that a record describes under `name`; unknown members are ignored.

        Raises:
            ArtifactError: the members are not valid; names the artifact and the mistake.
        """
        try:
            return cls(
                name=name,
                reference=parse_reference(_member(members, "reference", str)),
                size_bytes=_member(members, "size_bytes", int),
                sha256=_member(members, "sha256", str),
                media_type=_member(members, "media_type", str),
            )
        except ArtifactError as exc:
            raise type(exc)(f"artifact {quoted(name)}: {exc}") from exc


def _member(members: Any, name: str, kind: type[T]) -> T:
    if not isinstance(members, Mapping):
        raise ArtifactError(f"an object is expected, not {_kind(members)}")
    if name not in members:
        raise ArtifactError(f"'{name}' is missing")
    value = members[name]
    # In Python, True is an int.
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ArtifactError(f"'{name}' is {_kind(value)}, not {kind.__name__}")
    return value


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def media_type_of(name: str) -> str:
    """Return the media type of the name's ending, on any machine; else `application/octet-stream`."""
    ending, types = PurePosixPath(name).suffix, _types()
    if encoding := types.encodings_map.get(ending):
        return _COMPRESSED.get(encoding, UNKNOWN)
    ending = ending.lower()
    return _OTHERS.get(ending) or types.types_map[True].get(ending, UNKNOWN)


@cache
def _types() -> mimetypes.MimeTypes:
    # mimetypes.guess_type reads the machine's own tables, and takes a name for a URL.
    return mimetypes.MimeTypes()


class Keeper:
    """Keeps artifacts of up to `inline_max_bytes` in their references, and all others in `blobs`."""

    def __init__(self, blobs: Blobs, inline_max_bytes: int = INLINE_MAX_BYTES) -> None:
        self.blobs = blobs
        self.inline_max_bytes = inline_max_bytes

    def keep(
        self,
        name: str,
        source: Source,
        media_type: str | None = None,
        expected_sha256: str | None = None,
        *,
        inline: bool = True,
    ) -> Artifact:
        """Keep the content, and return its artifact; size and checksum are those of what was kept.

        Args:
            source: the content; a stream must be seekable.
            media_type: if None, the name's ending tells it.
            expected_sha256: other content raises `ArtifactCorruptError`, and is not kept.
            inline: whether small content may be kept in the reference.
        """
        media_type = media_type_of(name) if media_type is None else media_type
        check_media_type(media_type)
        content = self._small(source) if inline else None
        if content is None:
            blob = self.blobs.put(source, expected_sha256=expected_sha256)
            return Artifact(name, CasReference(blob.sha256), blob.size_bytes, blob.sha256, media_type)
        blob = _blob(content)
        require(blob, expected_sha256, named(source))
        return Artifact(
            name, InlineReference.of(content, media_type), blob.size_bytes, blob.sha256, media_type
        )

    def read(self, artifact: Artifact, max_bytes: int | None = None) -> bytes:
        """Return the content, verified; raise `ArtifactError` if it is longer than `max_bytes`."""
        with self.open(artifact) as chunks:
            return gathered(chunks, max_bytes, f"artifact {quoted(artifact.name)}")

    @contextmanager
    def open(self, artifact: Artifact) -> Iterator[Iterator[bytes]]:
        """Yield the content in chunks, the last one only if the whole content is verified."""
        match artifact.reference:
            case InlineReference() as reference:
                content = reference.decode()
                _require_same(artifact, _blob(content))
                yield iter((content,) if content else ())
            case CasReference() as reference:
                with self.blobs.open(reference.sha256) as chunks:
                    yield _sized(artifact, chunks)
            case RelativeReference() as reference:
                raise ArtifactReferenceError(
                    f"artifact {quoted(artifact.name)} is at {reference} below some base; a loader reads it"
                )
            case _:
                assert_never(artifact.reference)

    def verify(self, artifact: Artifact) -> None:
        """Read the whole content; raise `ArtifactError` if it is missing or has changed."""
        with self.open(artifact) as chunks:
            for _ in chunks:
                pass

    def copy_to(self, artifact: Artifact, path: Path) -> None:
        """Write the artifact to `path`, whole or not at all."""
        part = path.parent / f".{uuid4().hex}.part"
        try:
            with self.open(artifact) as chunks, part.open("xb", buffering=0) as file:
                write_all(file, chunks)
            os.replace(part, path)  # noqa: PTH105, replaces an existing file in one step
        except ArtifactError:
            raise
        except OSError as exc:
            raise ArtifactError(f"{path} can't be written: {exc.strerror}") from exc
        finally:
            with suppress(OSError):
                part.unlink()

    def _small(self, source: Source) -> bytes | None:
        """Return the whole content if it is small enough for a reference, else None."""
        if isinstance(source, bytes):
            return source if len(source) <= self.inline_max_bytes else None
        with open_source(source) as file:
            start, content = file.tell(), b""
            for chunk in chunks_of(file, named(source)):
                content += chunk
                if len(content) > self.inline_max_bytes:
                    file.seek(start)  # the stream is read again when it is stored
                    return None
            return content


def _sized(artifact: Artifact, chunks: Iterator[bytes]) -> Iterator[bytes]:
    size_bytes = 0
    for chunk in chunks:
        size_bytes += len(chunk)
        yield chunk
    _require_same(artifact, Blob(artifact.sha256, size_bytes))


def _require_same(artifact: Artifact, found: Blob) -> None:
    if found != Blob(artifact.sha256, artifact.size_bytes):
        raise ArtifactCorruptError(
            f"artifact {quoted(artifact.name)} is corrupt: {artifact.size_bytes} bytes with the SHA-256 "
            f"{artifact.sha256} were kept, {found.size_bytes} with {found.sha256} are there"
        )


def _blob(content: bytes) -> Blob:
    return Blob(hashlib.sha256(content).hexdigest(), len(content))
