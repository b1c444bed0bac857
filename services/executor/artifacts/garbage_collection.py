"""Deleting the blobs that nothing refers to: list, mark, sweep, in this order.

Three things keep a blob that somebody is about to refer to.  A run stores
before its record names the blob, so nothing young is deleted.  The candidates
are listed before the records are read, so whatever is named later than the
reading was put later than the listing.  And a put of a duplicate renews the
blob's age, which is looked at again with the deletion.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from services.executor.artifacts.blobs import LEFTOVER_AGE, Blobs, Stored
from services.executor.artifacts.references import check_sha256


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection came to; of a dry run, what it would have come to."""

    deleted: tuple[Stored, ...]
    kept: int
    """Blobs that are referred to, or were put again meanwhile."""
    young: int
    """Blobs that were not looked at, because somebody may be about to refer to them."""
    leftover_bytes: int
    """What writers that died had left behind."""

    @property
    def freed_bytes(self) -> int:
        """How much room the collection made."""
        return self.leftover_bytes + sum(blob.size_bytes for blob in self.deleted)


def utc_now() -> datetime:
    """The time now, with its zone."""
    return datetime.now(UTC)


def collect(
    blobs: Blobs,
    referenced: Collection[str] | Callable[[], Collection[str]],
    *,
    older_than_seconds: float,
    dry_run: bool = False,
    now: Callable[[], datetime] = utc_now,
) -> Collected:
    """Delete every blob that `referenced` doesn't have and that is older than `older_than_seconds`.

    `referenced` holds the SHA-256 of each blob to keep; a function is called
    once, after the blobs were listed, and whatever it raises ends the
    collection before anything is deleted.  So does an entry that is not a
    SHA-256: keeping the wrong blobs would mean deleting the right ones.
    """
    started_at = now()
    cutoff = started_at - timedelta(seconds=older_than_seconds)
    found = list(blobs.all())
    candidates = [blob for blob in found if blob.modified_at <= cutoff]
    marked = _marked(referenced() if callable(referenced) else referenced)
    doomed = [blob for blob in candidates if blob.sha256 not in marked]
    if not dry_run:
        doomed = [blob for blob in doomed if blobs.delete(blob.sha256, unless_put_after=cutoff)]
    return Collected(
        deleted=tuple(doomed),
        kept=len(candidates) - len(doomed),
        young=len(found) - len(candidates),
        leftover_bytes=blobs.clear_leftovers(started_at - LEFTOVER_AGE, dry_run=dry_run),
    )


def _marked(referenced: Collection[str]) -> frozenset[str]:
    for sha256 in referenced:
        check_sha256(sha256)
    return frozenset(referenced)
