"""An artifact as a run's record describes it: its reference, size, checksum and media type."""

import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath
from typing import Any, Final, TypeVar

from services.executor.artifacts.references import (
    CasReference,
    Reference,
    check_media_type,
    check_sha256,
    parse_reference,
    quoted,
)
from shared.errors import ArtifactError, ArtifactReferenceError

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
