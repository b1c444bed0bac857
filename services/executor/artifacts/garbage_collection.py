"""Garbage collection: deletes the blobs that nothing refers to.  Lists, marks and sweeps, in this order.

Three rules protect a blob that is about to be referred to:

- A run stores a blob before its record names it, so young blobs are not deleted.
- Blobs are listed before the records are read, so a blob that is named after the reading was put
  after the listing, and is young.
- A put of a duplicate renews the blob's age, and the age is checked again with the deletion.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from services.executor.artifacts.blobs import LEFTOVER_AGE, Blobs, StoredBlob
from services.executor.artifacts.references import check_sha256


@dataclass(frozen=True, slots=True)
class Collected:
    """The result of a collection; for a dry run, the result that it would have had."""

    deleted: tuple[StoredBlob, ...]
    kept: int
    """The number of old blobs that are referred to, or were put again during the collection."""
    young: int
    """The number of blobs too young to be deleted."""
    leftover_bytes: int
    """The size of the drafts that dead writers left."""

    @property
    def freed_bytes(self) -> int:
        """The number of bytes that the collection freed."""
        return self.leftover_bytes + sum(blob.size_bytes for blob in self.deleted)


def utc_now() -> datetime:
    """Return the current time, with its zone."""
    return datetime.now(UTC)


def collect(
    blobs: Blobs,
    referenced: Collection[str] | Callable[[], Collection[str]],
    *,
    older_than_seconds: float,
    dry_run: bool = False,
    now: Callable[[], datetime] = utc_now,
) -> Collected:
    """Delete every blob that is not in `referenced` and is older than `older_than_seconds`.

    Args:
        referenced: the SHA-256 of each blob to keep; or a function that returns these, which is called
            once, after the blobs are listed.  Nothing is deleted if it raises an error.
        dry_run: delete nothing, and return what would be deleted.

    Raises:
        ArtifactReferenceError: an entry is not a SHA-256; nothing is deleted.
    """
    started_at = now()
    cutoff = started_at - timedelta(seconds=older_than_seconds)
    found = list(blobs.all())
    candidates = [blob for blob in found if blob.modified_at <= cutoff]
    marked = _marked(referenced() if callable(referenced) else referenced)
    unreferenced = [blob for blob in candidates if blob.sha256 not in marked]
    if not dry_run:
        unreferenced = [blob for blob in unreferenced if blobs.delete(blob.sha256, unless_put_after=cutoff)]
    return Collected(
        deleted=tuple(unreferenced),
        kept=len(candidates) - len(unreferenced),
        young=len(found) - len(candidates),
        leftover_bytes=blobs.clear_leftovers(started_at - LEFTOVER_AGE, dry_run=dry_run),
    )


def _marked(referenced: Collection[str]) -> frozenset[str]:
    for sha256 in referenced:
        check_sha256(sha256)
    return frozenset(referenced)
