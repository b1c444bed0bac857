"""The conformance suite for every store of blobs."""

import hashlib
import io
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from services.executor.artifacts import Blob, Blobs, open_blobs
from shared.errors import (
    ArtifactCorruptError,
    ArtifactError,
    ArtifactNotFoundError,
    ArtifactReferenceError,
)
from tests.artifacts.conftest import Place

MIB = 1 << 20
CONTENT = bytes(range(256)) * 5
LARGE = os.urandom(MIB) * 9 + b"and one part more than one request takes"
SOME_CHUNKS = LARGE[: 2 * MIB + 17]
MISSING = "0" * 64
SPOILS: dict[str, Callable[[bytes], bytes]] = {
    "a flipped bit": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "a truncation": lambda content: content[:-1],
    "an append": lambda content: content + b"\0",
    "nothing left": lambda content: b"",
}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Pipe(io.RawIOBase):
    """A stream that can't be rewound and returns chunks of any size, like a socket."""

    def __init__(self, content: bytes, at_once: int = 70_000) -> None:
        self._inner, self._at_once = io.BytesIO(content), at_once

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        return self._inner.read(min(size, self._at_once))


@pytest.mark.parametrize("content", [b"", b"x", CONTENT, LARGE], ids=["empty", "one", "some", "large"])
def test_content_is_read_back(blobs: Blobs, content: bytes) -> None:
    blob = blobs.put(content)

    assert blob == Blob(sha256(content), len(content))
    assert blobs.read(blob.sha256) == content
    assert blobs.verify(blob.sha256) == blob
    assert blobs.size(blob.sha256) == len(content)
    assert blobs.exists(blob.sha256)


@pytest.mark.parametrize("content", [b"", CONTENT, LARGE], ids=["empty", "some", "large"])
def test_a_file_and_a_stream_are_the_same_blob_as_their_bytes(
    blobs: Blobs, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)

    with path.open("rb") as stream:
        put = [blobs.put(path), blobs.put(stream), blobs.put(Pipe(content))]  # type: ignore[arg-type]

    assert put == [Blob(sha256(content), len(content))] * 3
    assert [one.sha256 for one in blobs.all()] == [sha256(content)]
    assert blobs.read(sha256(content)) == content


def test_a_stream_is_read_from_where_it_stands_and_left_open(blobs: Blobs) -> None:
    stream = io.BytesIO(b"skipped, kept")
    stream.seek(9)

    blob = blobs.put(stream)

    assert blobs.read(blob.sha256) == b"kept"
    assert not stream.closed


def test_large_content_comes_in_chunks(blobs: Blobs) -> None:
    blob = blobs.put(LARGE)

    with blobs.open(blob.sha256) as chunks:
        sizes = [len(chunk) for chunk in chunks]

    assert sum(sizes) == len(LARGE)
    assert max(sizes) <= 2 * MIB


def test_a_reader_may_stop_early(blobs: Blobs) -> None:
    blob = blobs.put(LARGE)

    with blobs.open(blob.sha256) as chunks:
        first = next(chunks)

    assert LARGE.startswith(first)


def test_a_duplicate_is_stored_once(blobs: Blobs) -> None:
    first, second = blobs.put(CONTENT), blobs.put(CONTENT)

    assert first == second
    assert [(one.sha256, one.size_bytes) for one in blobs.all()] == [(first.sha256, first.size_bytes)]


def test_all_lists_every_blob_and_nothing_else(place: Place) -> None:
    put = {place.blobs.put(str(number).encode()) for number in range(20)}
    place.litter()

    found = list(place.blobs.all())

    assert {Blob(one.sha256, one.size_bytes) for one in found} == put
    assert len(found) == 20
    assert all(abs(datetime.now(UTC) - one.modified_at) < timedelta(minutes=10) for one in found)


def test_an_empty_store_lists_nothing(blobs: Blobs) -> None:
    assert list(blobs.all()) == []


def test_an_expected_checksum_is_checked_before_anything_is_stored(blobs: Blobs) -> None:
    with pytest.raises(ArtifactCorruptError) as caught:
        blobs.put(CONTENT, expected_sha256=MISSING)

    assert MISSING in str(caught.value)
    assert sha256(CONTENT) in str(caught.value)
    assert list(blobs.all()) == []
    assert blobs.put(CONTENT, expected_sha256=sha256(CONTENT)).sha256 == sha256(CONTENT)


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS.keys())
def test_a_corrupt_blob_is_an_error_and_never_content(place: Place, spoil: Callable[[bytes], bytes]) -> None:
    blob = place.blobs.put(SOME_CHUNKS)
    corrupt = spoil(SOME_CHUNKS)
    place.spoil(blob.sha256, corrupt)

    seen: list[bytes] = []
    with pytest.raises(ArtifactCorruptError) as caught, place.blobs.open(blob.sha256) as chunks:
        seen.extend(chunks)

    assert len(b"".join(seen)) < len(corrupt) or not corrupt
    for part in (place.blobs.place(blob.sha256), blob.sha256, sha256(corrupt), str(len(corrupt))):
        assert part in str(caught.value)
    with pytest.raises(ArtifactCorruptError):
        place.blobs.read(blob.sha256)
    with pytest.raises(ArtifactCorruptError):
        place.blobs.verify(blob.sha256)


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS.keys())
def test_putting_again_repairs_a_corrupt_blob(place: Place, spoil: Callable[[bytes], bytes]) -> None:
    blob = place.blobs.put(CONTENT)
    place.spoil(blob.sha256, spoil(CONTENT))

    place.blobs.put(CONTENT)

    assert place.blobs.read(blob.sha256) == CONTENT


def test_a_missing_blob_is_not_found_with_its_full_place(blobs: Blobs) -> None:
    for ask in (blobs.read, blobs.verify, blobs.size):
        with pytest.raises(FileNotFoundError) as caught:
            ask(MISSING)

        assert isinstance(caught.value, ArtifactNotFoundError)
        assert f"{blobs.base}/sha256/00/{MISSING}" in str(caught.value)
    assert not blobs.exists(MISSING)
    assert not blobs.delete(MISSING)


@pytest.mark.parametrize(
    "address", ["", "abc", "../../../etc/passwd", "0" * 63, "0" * 65, "A" * 64, "0" * 64 + "\n"]
)
def test_a_bad_address_is_refused(blobs: Blobs, address: str) -> None:
    for ask in (blobs.read, blobs.verify, blobs.size, blobs.exists, blobs.delete, blobs.place):
        with pytest.raises(ArtifactReferenceError):
            ask(address)


def test_content_too_large_to_read_at_once_is_refused(blobs: Blobs) -> None:
    blob = blobs.put(CONTENT)

    assert blobs.read(blob.sha256, max_bytes=len(CONTENT)) == CONTENT
    with pytest.raises(ArtifactError, match=f"{len(CONTENT) - 1} bytes"):
        blobs.read(blob.sha256, max_bytes=len(CONTENT) - 1)


def test_a_deleted_blob_is_gone_and_the_others_stay(blobs: Blobs) -> None:
    gone, kept = blobs.put(b"gone"), blobs.put(b"kept")

    assert blobs.delete(gone.sha256)

    assert not blobs.exists(gone.sha256)
    assert [one.sha256 for one in blobs.all()] == [kept.sha256]


def test_a_blob_that_was_put_again_is_not_deleted(blobs: Blobs) -> None:
    blob = blobs.put(CONTENT)

    deleted = blobs.delete(blob.sha256, unless_put_after=datetime.now(UTC) - timedelta(hours=1))

    assert not deleted
    assert blobs.read(blob.sha256) == CONTENT
    assert blobs.delete(blob.sha256, unless_put_after=datetime.now(UTC) + timedelta(hours=1))


def test_two_openings_of_a_place_are_one_store(place: Place) -> None:
    blob = place.blobs.put(CONTENT)

    assert open_blobs(place.url).read(blob.sha256) == CONTENT


def test_text_is_refused(blobs: Blobs) -> None:
    with pytest.raises(ArtifactError, match="binary mode"):
        blobs.put(io.StringIO("text"))  # type: ignore[arg-type]

    assert list(blobs.all()) == []


@pytest.mark.parametrize("kind", ["missing", "directory", "link", "fifo", "device"])
def test_only_a_regular_file_is_read(blobs: Blobs, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "source"
    match kind:
        case "directory":
            path.mkdir()
        case "link":
            (tmp_path / "target").write_bytes(b"secret")
            path.symlink_to("target")
        case "fifo":
            os.mkfifo(path)
        case "device":
            path = Path("/dev/zero")

    with pytest.raises(ArtifactError) as caught:
        blobs.put(path)

    assert str(path) in str(caught.value)
    assert isinstance(caught.value, FileNotFoundError) == (kind == "missing")
    assert list(blobs.all()) == []


class Dying(io.RawIOBase):
    """A source that fails after some chunks."""

    def __init__(self, size_bytes: int) -> None:
        self._left = size_bytes

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        if self._left <= 0:
            raise OSError(5, "Input/output error")
        self._left -= size
        return b"x" * size


def test_a_source_that_fails_stores_nothing(blobs: Blobs) -> None:
    with pytest.raises(ArtifactError, match="Input/output error"):
        blobs.put(Dying(12 * MIB))  # type: ignore[arg-type]

    assert list(blobs.all()) == []
