"""Artifacts that are kept inline and in the store."""

import hashlib
import json
from pathlib import Path

import pytest

from services.executor.artifacts import Artifact, CasReference, InlineReference, Keeper, open_blobs
from shared.errors import ArtifactCorruptError, ArtifactError, ArtifactNotFoundError, ArtifactReferenceError

LIMIT = 64_000


@pytest.fixture
def keeper(tmp_path: Path) -> Keeper:
    """A keeper on a directory, with the default limit."""
    return Keeper(open_blobs(tmp_path / "blobs"))


@pytest.mark.parametrize("as_file", [False, True])
@pytest.mark.parametrize(
    ("size_bytes", "form"),
    [(0, InlineReference), (1, InlineReference), (LIMIT, InlineReference), (LIMIT + 1, CasReference)],
)
def test_exactly_the_limit_is_inline_and_one_byte_more_is_not(
    keeper: Keeper, tmp_path: Path, size_bytes: int, form: type, as_file: bool
) -> None:
    content = bytes(size_bytes)
    path = tmp_path / "source"
    path.write_bytes(content)

    artifact = keeper.keep("data.csv", path if as_file else content)

    assert type(artifact.reference) is form
    assert artifact.size_bytes == size_bytes
    assert artifact.sha256 == hashlib.sha256(content).hexdigest()
    assert artifact.media_type == "text/csv"
    assert keeper.read(artifact) == content


def test_small_artifacts_are_not_put_into_the_store(keeper: Keeper) -> None:
    keeper.keep("small", bytes(LIMIT))

    assert list(keeper.blobs.all()) == []


def test_an_artifact_can_be_read_from_its_record(keeper: Keeper) -> None:
    for content in (b"small", bytes(LIMIT + 1)):
        artifact = keeper.keep("data.bin", content)

        members = json.loads(json.dumps(artifact.to_json()))

        assert keeper.read(Artifact.from_json("data.bin", members)) == content


@pytest.mark.parametrize("name", ["error", "", "a/b:c\n", "..", "data:text/html,x"])
@pytest.mark.parametrize("content", [b"", b"{}", bytes(LIMIT + 1)], ids=["empty", "small", "large"])
def test_no_name_and_no_content_is_special(keeper: Keeper, name: str, content: bytes) -> None:
    artifact = keeper.keep(name, content)

    assert artifact.name == name
    assert artifact.media_type == "application/octet-stream"
    assert keeper.read(Artifact.from_json(name, artifact.to_json())) == content


def test_a_given_media_type_wins_over_the_name(keeper: Keeper) -> None:
    assert (
        keeper.keep("a.csv", b"x", media_type="text/plain;charset=utf-8").media_type
        == "text/plain;charset=utf-8"
    )
    with pytest.raises(ArtifactReferenceError, match="not a media type"):
        keeper.keep("a.csv", b"x", media_type="text/plain,base64")


@pytest.mark.parametrize("size_bytes", [10, LIMIT + 1])
def test_content_with_another_checksum_than_expected_is_not_kept(keeper: Keeper, size_bytes: int) -> None:
    content = bytes(size_bytes)

    with pytest.raises(ArtifactCorruptError):
        keeper.keep("data", content, expected_sha256="0" * 64)

    assert list(keeper.blobs.all()) == []
    assert (
        keeper.keep("data", content, expected_sha256=hashlib.sha256(content).hexdigest()).size_bytes
        == size_bytes
    )


def test_a_limit_of_zero_keeps_everything_but_nothing_in_the_store(tmp_path: Path) -> None:
    keeper = Keeper(open_blobs(tmp_path), inline_max_bytes=0)

    assert isinstance(keeper.keep("x", b"x").reference, CasReference)
    assert isinstance(keeper.keep("x", b"").reference, InlineReference)


@pytest.mark.parametrize("encoded", ["aGVsbG9v", "aGVsbA==", "aGVsbG", "!!!!", ""])
def test_corrupt_inline_content_is_an_error_and_never_content(keeper: Keeper, encoded: str) -> None:
    members = keeper.keep("greeting", b"hello").to_json()
    corrupt = Artifact.from_json("greeting", members | {"reference": f"data:text/plain;base64,{encoded}"})

    with pytest.raises(ArtifactCorruptError):
        keeper.read(corrupt)


@pytest.mark.parametrize("size_bytes", [5, LIMIT + 1])
def test_a_record_with_the_wrong_size_is_corrupt(keeper: Keeper, size_bytes: int) -> None:
    members = keeper.keep("data", bytes(size_bytes)).to_json()

    for wrong_bytes in (size_bytes - 1, size_bytes + 1):
        with pytest.raises(ArtifactCorruptError, match=f"'data' is corrupt: {wrong_bytes} bytes"):
            keeper.read(Artifact.from_json("data", members | {"size_bytes": wrong_bytes}))


def test_a_corrupt_blob_is_an_error_and_never_content(keeper: Keeper) -> None:
    artifact = keeper.keep("data", bytes(LIMIT + 1))
    path = Path(keeper.blobs.place(artifact.sha256))
    path.unlink()
    path.write_bytes(b"\1" + bytes(LIMIT))

    with pytest.raises(ArtifactCorruptError, match=str(path)):
        keeper.read(artifact)


def test_a_missing_blob_is_not_found(keeper: Keeper) -> None:
    artifact = keeper.keep("data", bytes(LIMIT + 1))
    keeper.blobs.delete(artifact.sha256)

    with pytest.raises(ArtifactNotFoundError, match=keeper.blobs.base):
        keeper.read(artifact)


@pytest.mark.parametrize("size_bytes", [10, LIMIT + 1])
def test_no_more_is_read_than_asked_for(keeper: Keeper, size_bytes: int) -> None:
    artifact = keeper.keep("data", bytes(size_bytes))

    assert len(keeper.read(artifact, max_bytes=size_bytes)) == size_bytes
    with pytest.raises(ArtifactError, match=f"longer than the {size_bytes - 1} bytes"):
        keeper.read(artifact, max_bytes=size_bytes - 1)


def test_a_relative_artifact_is_left_to_a_loader(keeper: Keeper) -> None:
    members = keeper.keep("data", b"hello").to_json() | {"reference": "out/data.csv"}

    with pytest.raises(ArtifactReferenceError, match="a loader reads it"):
        keeper.read(Artifact.from_json("data", members))


@pytest.mark.parametrize("content", [b"", b"small", bytes(3_000_000)], ids=["empty", "small", "large"])
def test_a_copy_is_complete(keeper: Keeper, tmp_path: Path, content: bytes) -> None:
    artifact = keeper.keep("data", content)
    copy = tmp_path / "copies" / "data"
    copy.parent.mkdir()
    copy.write_bytes(b"what was there before")

    keeper.copy_to(artifact, copy)

    assert copy.read_bytes() == content
    assert list(copy.parent.iterdir()) == [copy]


def test_corrupt_content_is_not_copied(keeper: Keeper, tmp_path: Path) -> None:
    artifact = keeper.keep("data", bytes(3_000_000))
    blob, copy = Path(keeper.blobs.place(artifact.sha256)), tmp_path / "copies" / "data"
    blob.chmod(0o644)
    with blob.open("ab") as file:
        file.write(b"!")
    copy.parent.mkdir()

    with pytest.raises(ArtifactCorruptError):
        keeper.copy_to(artifact, copy)

    assert list(copy.parent.iterdir()) == []


def test_a_copy_that_can_not_be_written_is_an_error_that_names_it(keeper: Keeper, tmp_path: Path) -> None:
    artifact = keeper.keep("data", b"hello")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()

    for path in (tmp_path / "missing" / "data", tmp_path / "folder", tmp_path / "file" / "data", Path("/")):
        with pytest.raises(ArtifactError, match=str(path)):
            keeper.copy_to(artifact, path)


def test_a_missing_source_is_not_found(keeper: Keeper, tmp_path: Path) -> None:
    with pytest.raises(ArtifactNotFoundError, match=str(tmp_path / "missing")):
        keeper.keep("data", tmp_path / "missing")
