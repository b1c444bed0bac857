"""Reads the record of a run, and the artifacts and large fields that it refers to."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from services.executor.artifacts import (
    Artifact,
    Blobs,
    CasReference,
    LocalBlobs,
    parse_reference,
)
from services.executor.artifacts.loaders import local_directory
from services.executor.artifacts.object_blobs import ObjectBlobs
from services.executor.outcome import Status
from services.executor.store import ENDED, Claim, Store, moment
from services.operations import words
from shared.errors import ArtifactError, RunNotFoundError

PATIENCE_SECONDS: Final = 10.0
"""How long a command waits for an object store that can't be reached."""

LARGE_FIELDS: Final = {
    "result": "result.json",
    "partial_results": "partial_results.json",
    "traceback": "traceback.txt",
}
"""Fields of a record that may hold a reference instead of the value, and a file name for the value."""

Record = dict[str, str]
"""The fields of a run's record, and its `run_id`."""

TEXTS = frozenset({
    "run_id", "experiment_id", "tool", "tool_digest", "trigger", "triggered_by", "request_id", "worker",
    "lease", "error", "error_type", "traceback", "run_digest", "entry_point", "environment_digest",
    "cached_from",
})  # fmt: skip
"""Fields that are plain text, even if the text looks like JSON."""


async def recent_runs(
    store: Store, experiment_id: str | None, limit: int, status: str | None = None
) -> list[Record]:
    """Return the newest runs, queued ones included.

    Args:
        store: where they are.
        experiment_id: whose runs; None for all.
        limit: how many at most.
        status: of all runs; None for any.
    """
    if status in ENDED and experiment_id is None:
        return await store.history.recent(None, limit, status)
    begun = await store.history.recent(experiment_id, limit)
    known = {record["run_id"] for record in begun}
    waiting = [
        queued_record(claim)
        for claim in await store.queue.waiting()
        if claim.order.run_id not in known and experiment_id in (None, claim.order.experiment_id)
    ]
    newest = sorted([*waiting, *begun], key=lambda record: moment(record["run_id"]), reverse=True)
    return newest[:limit]


async def record_of(store: Store, run_id: str) -> Record:
    """Read the record of a run; for a queued run, what its order says.

    Raises:
        RunNotFoundError: there is no such run.
    """
    record = await store.runs.record(run_id)
    if record:
        return {"run_id": run_id, **record}
    for claim in await store.queue.waiting():
        if claim.order.run_id == run_id:
            return queued_record(claim)
    raise no_such_run(run_id)


def no_such_run(run_id: str) -> RunNotFoundError:
    """The error for an unknown run id."""
    return RunNotFoundError(f"there is no run {run_id!r}; `fullsend runs` lists the runs")


def queued_record(claim: Claim) -> Record:
    """Return the record that a queued run would have."""
    order = claim.order
    return {
        "run_id": order.run_id,
        "experiment_id": order.experiment_id,
        "status": "queued",
        "attempt": str(order.attempt),
        "trigger": order.trigger,
    }


def decode(record: Record) -> dict[str, Any]:
    """Return the record with its JSON fields decoded."""
    members = {name: value if name in TEXTS else words.parse_json(value) for name, value in record.items()}
    return {**members, "status": status_of(record)}


def status_of(record: Record) -> str:
    """Return the run's status; a run between two attempts is `retrying` or `queued`."""
    status = record.get("status", "")
    if status == Status.RUNNING and record.get("lease") == "":
        return "retrying" if "retry_at" in record else "queued"
    return status


# -- what a record refers to ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ListedArtifact:
    """An artifact as a record lists it; `problem` says why its entry can't be read."""

    name: str
    artifact: Artifact | None
    problem: str = ""

    @property
    def is_stored(self) -> bool:
        """Whether the content is in the artifact store, not in the record."""
        return self.artifact is not None and isinstance(self.artifact.reference, CasReference)


def open_store(place: str) -> Blobs:
    """Open the artifact store at `place`, in the form of the setting ARTIFACTS.

    Raises:
        ArtifactError: there is no such store.
    """
    directory = local_directory(place)
    return ObjectBlobs(place, PATIENCE_SECONDS) if directory is None else LocalBlobs(directory)


def artifacts_in(record: Mapping[str, str]) -> list[ListedArtifact]:
    """Return the artifacts in a record, sorted by name.

    Raises:
        ArtifactError: the record's field `artifacts` is not a JSON object.
    """
    try:
        members = json.loads(record.get("artifacts") or "{}")
    except ValueError as exc:
        raise ArtifactError(f"the record's artifacts are not JSON: {exc}") from None
    if not isinstance(members, dict):
        raise ArtifactError("the record's artifacts are not an object")
    return [_artifact_in(name, members[name]) for name in sorted(members)]


def _artifact_in(name: str, members: Any) -> ListedArtifact:
    try:
        return ListedArtifact(name, Artifact.from_json(name, members))
    except ArtifactError as exc:
        return ListedArtifact(name, None, str(exc))


async def with_artifacts(store: Store, run_id: str, record: dict[str, str]) -> dict[str, str]:
    """Return the record; for a running run, with the artifacts that it has stored so far."""
    if "artifacts" in record or "status" not in record:
        return record
    try:
        found = await store.runs.checkpoints(run_id).artifacts()
    except ValueError as exc:
        raise ArtifactError(f"the artifacts of {run_id} are not JSON: {exc}") from None
    return {**record, "artifacts": json.dumps(found)} if found else record


def reference_in(record: Mapping[str, str], field: str) -> CasReference | None:
    """Return the reference in a large field; None if the record holds the value itself."""
    text = record.get(field, "") if field in LARGE_FIELDS else ""
    if not text.startswith("cas://"):
        return None
    try:
        reference = parse_reference(text)
    except ArtifactError:
        return None
    return reference if isinstance(reference, CasReference) else None


def load_text(reference: CasReference, place: str, max_bytes: int) -> str:
    """Load a text from the artifact store at `place`.

    Raises:
        ArtifactError: the text is larger than `max_bytes`, missing or corrupt.
    """
    blobs = open_store(place)
    size_bytes = blobs.size(reference.sha256)
    if size_bytes > max_bytes:
        raise ArtifactError(f"it is too large ({words.size(size_bytes)})")
    return blobs.read(reference.sha256, max_bytes).decode(errors="replace")
