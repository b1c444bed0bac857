"""What a run's record says was kept for it, and where the store of it is."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from services.cli import output
from services.executor.artifacts import (
    Artifact,
    Blobs,
    CasReference,
    LocalBlobs,
    parse_reference,
)
from services.executor.artifacts.objects import ObjectBlobs
from services.executor.artifacts.opening import local_directory
from services.executor.store import Store
from shared.errors import ArtifactError

PATIENCE_SECONDS: Final = 10.0
"""How long a person is kept waiting for an object store that can't be reached."""

LARGE_FIELDS: Final = {
    "result": "result.json",
    "partial_results": "partial_results.json",
    "traceback": "traceback.txt",
}
"""Fields of a record that may be a reference instead, and what a file with the content is best called."""


@dataclass(frozen=True, slots=True)
class Listed:
    """An artifact by the name it has in a record, or what is wrong with what the record says of it."""

    name: str
    artifact: Artifact | None
    problem: str = ""

    @property
    def is_stored(self) -> bool:
        """Whether the content is in the store, and not in the record."""
        return self.artifact is not None and isinstance(self.artifact.reference, CasReference)


def open_store(place: str) -> Blobs:
    """The store of artifacts at `place`, as ARTIFACTS names it.  Raises ArtifactError."""
    directory = local_directory(place)
    return ObjectBlobs(place, PATIENCE_SECONDS) if directory is None else LocalBlobs(directory)


def listed(record: Mapping[str, str]) -> list[Listed]:
    """The artifacts in a record, by name.  Raises ArtifactError when the record has no list of them."""
    try:
        members = json.loads(record.get("artifacts") or "{}")
    except ValueError as exc:
        raise ArtifactError(f"the record's artifacts are not JSON: {exc}") from None
    if not isinstance(members, dict):
        raise ArtifactError("the record's artifacts are not an object")
    return [_listed(name, members[name]) for name in sorted(members)]


def _listed(name: str, members: Any) -> Listed:
    try:
        return Listed(name, Artifact.from_json(name, members))
    except ArtifactError as exc:
        return Listed(name, None, str(exc))


async def with_artifacts(store: Store, run_id: str, record: dict[str, str]) -> dict[str, str]:
    """The record, of a run under way with what its attempts have kept so far."""
    if "artifacts" in record or "status" not in record:
        return record
    try:
        found = await store.runs.effects(run_id).artifacts()
    except ValueError as exc:
        raise ArtifactError(f"what {run_id} has kept so far is not JSON: {exc}") from None
    return {**record, "artifacts": json.dumps(found)} if found else record


def reference_in(record: Mapping[str, str], field: str) -> CasReference | None:
    """Where a large field's text is; None when it is in the record itself."""
    text = record.get(field, "") if field in LARGE_FIELDS else ""
    if not text.startswith("cas://"):
        return None
    try:
        reference = parse_reference(text)
    except ArtifactError:
        return None
    return reference if isinstance(reference, CasReference) else None


def loaded(reference: CasReference, place: str, max_bytes: int) -> str:
    """The text that is stored at `place`.

    Raises:
        ArtifactError: why it can't be shown: more than `max_bytes`, or what is wrong with it.
    """
    blobs = open_store(place)
    size_bytes = blobs.size(reference.sha256)
    if size_bytes > max_bytes:
        raise ArtifactError(f"{output.size(size_bytes)}, more than is shown")
    return blobs.read(reference.sha256, max_bytes).decode(errors="replace")
