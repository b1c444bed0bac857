"""One artifact as a run's record has it: where it is, how large, and what it must be."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

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


@dataclass(frozen=True, slots=True)
class Artifact:
    """Named bytes that a run left, and how to tell that they still are what they were."""

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
        """The members under the artifact's name in a record."""
        return {
            "reference": str(self.reference),
            "size_bytes": self.size_bytes,
            "sha256": self.sha256,
            "media_type": self.media_type,
        }

    @classmethod
    def from_json(cls, name: str, members: Any) -> "Artifact":
        """The artifact that a record has under `name`; members that aren't known are ignored.

        Raises ArtifactError, naming the artifact and what is wrong with it:
        records may have been written by anybody.
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
    # True is an int to Python, and to nobody else.
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ArtifactError(f"'{name}' is {_kind(value)}, not {kind.__name__}")
    return value


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__
