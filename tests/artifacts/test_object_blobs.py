"""Object stores: failing servers, URLs, and credentials."""

import hashlib
import io
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.executor.artifacts import Blobs, LocalBlobs, StorageType, open_blobs
from services.executor.artifacts.object_blobs import Bucket, ObjectBlobs
from shared.errors import ArtifactCorruptError, ArtifactError

MIB = 1 << 20
MISSING = "0" * 64


class Shifting(io.BytesIO):
    """A file that changes while it is stored: the second reading returns other content."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        if not offset:
            self.getbuffer()[-1:] = b"!"
        return super().seek(offset, whence)


@pytest.mark.parametrize("size_bytes", [100, 9 * MIB])
def test_a_source_that_changes_while_it_is_stored_is_refused(s3_url: str, size_bytes: int) -> None:
    blobs = ObjectBlobs(s3_url)

    with pytest.raises(ArtifactCorruptError, match="changed while it was stored"):
        blobs.put(Shifting(b"x" * size_bytes))

    assert list(blobs.all()) == []


def test_a_blob_is_an_object_below_the_prefix(s3_url: str) -> None:
    blob = ObjectBlobs(f"{s3_url}/").put(b"content")

    key = f"sha256/{blob.sha256[:2]}/{blob.sha256}"
    assert b"".join(Bucket(s3_url).get(key)) == b"content"
    assert ObjectBlobs(s3_url).place(blob.sha256) == f"{s3_url}/{key}"


def test_stores_below_two_prefixes_of_a_bucket_are_separate(s3_url: str) -> None:
    one, other = ObjectBlobs(f"{s3_url}/one"), ObjectBlobs(f"{s3_url}/two")

    blob = one.put(b"content")

    assert not other.exists(blob.sha256)
    assert list(other.all()) == []


def test_a_bucket_that_is_not_there_is_an_error_in_the_servers_words(s3_url: str) -> None:
    blobs = ObjectBlobs("s3://no-such-bucket/prefix")

    with pytest.raises(ArtifactError) as caught:
        blobs.put(b"content")

    sha256 = hashlib.sha256(b"content").hexdigest()
    assert f"s3://no-such-bucket/prefix/sha256/{sha256[:2]}/{sha256}" in str(caught.value)
    assert "NoSuchBucket: The specified bucket does not exist" in str(caught.value)


@pytest.fixture
def closed_port() -> Iterator[int]:
    """Return a port without a listener."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def test_a_server_that_does_not_answer_is_an_error_without_credentials(
    s3_url: str, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed_port}")
    blobs = ObjectBlobs(s3_url, retry_seconds=0.1)

    for ask in (
        blobs.read,
        blobs.exists,
        blobs.delete,
        lambda _: blobs.put(b"x"),
        lambda _: list(blobs.all()),
    ):
        with pytest.raises(ArtifactError) as caught:
            ask(MISSING)

        said = str(caught.value)
        assert said.startswith(f"{s3_url}/sha256")
        assert "error sending request" in said
        assert "a-secret-key" not in said
        assert "\n" not in said
        assert not isinstance(caught.value, FileNotFoundError)


@pytest.mark.parametrize(
    "url",
    [
        "s3://somebody:hush@bucket/prefix",
        "s3://hush@bucket/prefix",
        "az://container/prefix?sig=hush",
        "gs://bucket/prefix#hush",
        "s3://[hush@/x",
    ],
)
def test_a_url_with_credentials_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        open_blobs(url)

    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    "place", ["ftp://host/path", "http://host/path", "https://host/path", "S3://bucket", "s3:bucket"]
)
def test_an_unknown_scheme_is_an_error_that_lists_the_known_ones(place: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        open_blobs(place)

    assert "file://, memory://, s3://, gs://, az://" in str(caught.value)


@pytest.mark.parametrize(
    "place", ["", "a\0b", "file://host/path", "file:/var", "s3:bucket", "file://", "s3://", "s3:///x"]
)
def test_a_bad_place_is_refused(place: str) -> None:
    with pytest.raises(ArtifactError):
        open_blobs(place)


def test_every_store_has_its_type_and_its_base(
    tmp_path: Path, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_SKIP_SIGNATURE", "true")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.chdir(tmp_path)

    def known(blobs: Blobs) -> tuple[StorageType, str]:
        return blobs.storage_type, blobs.base

    assert known(open_blobs(tmp_path)) == (StorageType.LOCAL, str(tmp_path))
    assert known(open_blobs("blobs")) == (StorageType.LOCAL, str(tmp_path / "blobs"))
    assert known(open_blobs("file:///var/a%20b")) == (StorageType.LOCAL, "/var/a b")
    assert known(open_blobs("memory://one/")) == (StorageType.MEMORY, "memory://one")
    assert known(open_blobs(s3_url)) == (StorageType.S3, s3_url)
    assert known(open_blobs("gs://bucket/a/b/")) == (StorageType.GS, "gs://bucket/a/b")
    assert known(open_blobs("az://container/a")) == (StorageType.AZ, "az://container/a")


def test_azure_without_an_account_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_ACCOUNT_NAME"):
        monkeypatch.delenv(name, raising=False)

    with pytest.raises(
        ArtifactError, match=r"az://container/prefix can't be opened: .*Account must be specified"
    ):
        open_blobs("az://container/prefix")


def test_a_file_url_is_a_directory_and_not_an_object_store(tmp_path: Path) -> None:
    assert isinstance(open_blobs(f"file://{tmp_path}"), LocalBlobs)
    with pytest.raises(ArtifactError, match="is not an object store"):
        ObjectBlobs(f"file://{tmp_path}")
