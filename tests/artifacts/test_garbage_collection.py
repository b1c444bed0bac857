"""Garbage collection: what it deletes and what it keeps."""

import hashlib
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from services.executor.artifacts import Blobs, LocalBlobs, collect
from shared.errors import ArtifactReferenceError, StoreUnavailableError

HOUR_SECONDS = 3_600


def later() -> datetime:
    """Return the time in two hours, when a blob that is put now is older than one hour."""
    return datetime.now(UTC) + timedelta(hours=2)


def test_unreferenced_blobs_are_deleted_and_others_kept(blobs: Blobs) -> None:
    kept, gone = blobs.put(b"kept"), blobs.put(b"gone!")

    collected = collect(blobs, {kept.sha256, "0" * 64}, older_than_seconds=HOUR_SECONDS, now=later)

    assert [one.sha256 for one in collected.deleted] == [gone.sha256]
    assert (collected.kept, collected.young, collected.freed_bytes) == (1, 0, 5)
    assert [one.sha256 for one in blobs.all()] == [kept.sha256]


def test_a_dry_run_says_the_same_and_deletes_nothing(blobs: Blobs) -> None:
    blobs.put(b"kept"), blobs.put(b"gone!")

    rehearsed = collect(blobs, set(), older_than_seconds=HOUR_SECONDS, dry_run=True, now=later)
    there = len(list(blobs.all()))
    collected = collect(blobs, set(), older_than_seconds=HOUR_SECONDS, now=later)

    assert there == 2
    assert rehearsed == collected
    assert list(blobs.all()) == []


def test_nothing_young_is_deleted(blobs: Blobs) -> None:
    blob = blobs.put(b"stored before its record names it")

    collected = collect(blobs, set(), older_than_seconds=HOUR_SECONDS)

    assert (collected.deleted, collected.young) == ((), 1)
    assert blobs.exists(blob.sha256)


def test_records_are_read_after_the_blobs_were_listed(blobs: Blobs) -> None:
    blobs.put(b"old")
    meanwhile: list[str] = []

    def referenced() -> list[str]:
        meanwhile.append(blobs.put(b"stored while the records are read").sha256)
        return []

    collected = collect(blobs, referenced, older_than_seconds=HOUR_SECONDS, now=later)

    assert len(collected.deleted) == 1
    assert [one.sha256 for one in blobs.all()] == meanwhile


def test_unreadable_records_end_the_collection_before_anything_is_deleted(blobs: Blobs) -> None:
    blob = blobs.put(b"content")

    def unavailable() -> set[str]:
        raise StoreUnavailableError("Redis is away")

    with pytest.raises(StoreUnavailableError):
        collect(blobs, unavailable, older_than_seconds=0, now=later)

    assert blobs.exists(blob.sha256)


@pytest.mark.parametrize("entry", ["cas://", "", "abc", "A" * 64])
def test_a_bad_address_ends_the_collection_before_anything_is_deleted(blobs: Blobs, entry: str) -> None:
    blob = blobs.put(b"content")

    with pytest.raises(ArtifactReferenceError):
        collect(blobs, [blob.sha256, entry], older_than_seconds=0, now=later)

    assert blobs.exists(blob.sha256)


def test_a_reference_instead_of_its_address_deletes_nothing(blobs: Blobs) -> None:
    blob = blobs.put(b"content")

    with pytest.raises(ArtifactReferenceError):
        collect(blobs, [f"cas://{blob.sha256}"], older_than_seconds=0, now=later)

    assert blobs.exists(blob.sha256)


def test_an_empty_store_can_be_collected(blobs: Blobs) -> None:
    collected = collect(blobs, set(), older_than_seconds=0)

    assert (collected.deleted, collected.kept, collected.freed_bytes) == ((), 0, 0)


def test_a_duplicate_that_is_put_while_the_records_are_read_stays(local: LocalBlobs) -> None:
    sha256 = hashlib.sha256(b"content").hexdigest()
    local.put(b"content")
    make_old(Path(local.place(sha256)))

    def referenced() -> set[str]:
        local.put(b"content")
        return set()

    collected = collect(local, referenced, older_than_seconds=HOUR_SECONDS)

    assert (collected.deleted, collected.kept) == ((), 1)
    assert local.read(sha256) == b"content"


def test_drafts_of_dead_writers_are_deleted_after_a_day_and_counted(local: LocalBlobs) -> None:
    blob = local.put(b"kept")
    old, young = local.directory / "tmp" / "old", local.directory / "tmp" / "young"
    old.write_bytes(b"12345")
    young.write_bytes(b"123")
    make_old(old)

    rehearsed = collect(local, {blob.sha256}, older_than_seconds=0, dry_run=True)
    collected = collect(local, {blob.sha256}, older_than_seconds=0)

    assert rehearsed == collected
    assert (collected.leftover_bytes, collected.freed_bytes) == (5, 5)
    assert not old.exists()
    assert young.exists()


def make_old(path: Path) -> None:
    """Set the file's time to two days ago."""
    long_ago = (datetime.now(UTC) - timedelta(days=2)).timestamp()
    os.utime(path, (long_ago, long_ago))
