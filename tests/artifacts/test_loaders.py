"""Loading by reference from a directory, a store of blobs and a bucket."""

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.executor.artifacts import (
    ArtifactLoader,
    CasArtifactLoader,
    InlineReference,
    LocalArtifactLoader,
    ModalVolumeArtifactLoader,
    ObjectStoreArtifactLoader,
    loader_for,
    open_blobs,
)
from services.executor.artifacts.object_blobs import Bucket
from shared.errors import ArtifactCorruptError, ArtifactError, ArtifactNotFoundError, ArtifactReferenceError
from tests.artifacts.conftest import ON_MODAL, url_of, write
from tests.modal_server import RunningServer

MISSING = "cas://" + "0" * 64


class Results:
    """The results of a run at one place, and the loader for them."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.loader = loader_for(base)
        self.blob = open_blobs(base).put(b"a blob")
        self.write("results/day 1/metrics.csv", b"day,v\n1,2\n")

    def write(self, path: str, content: bytes) -> None:
        """Store a file or an object there."""
        if "://" in self.base:
            write(self.base, path, content)
        else:
            file = Path(self.base) / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)


@pytest.fixture(params=["local", "memory", "memory-prefix", "s3", *ON_MODAL])
def results(request: pytest.FixtureRequest) -> Results:
    """Results in a place of each kind."""
    return Results(url_of(request.param, request))


def test_a_file_is_loaded_by_its_path_below_the_base(results: Results) -> None:
    assert results.loader.load_bytes("results/day 1/metrics.csv") == b"day,v\n1,2\n"
    assert results.loader.load_text("results/day 1/metrics.csv") == "day,v\n1,2\n"
    assert results.loader.exists("results/day 1/metrics.csv")


def test_a_blob_below_the_base_is_loaded_by_its_address(results: Results) -> None:
    assert results.loader.load_bytes(f"cas://{results.blob.sha256}") == b"a blob"
    assert results.loader.exists(f"cas://{results.blob.sha256}")


def test_inline_content_needs_no_place(results: Results) -> None:
    reference = str(InlineReference.of("größer".encode(), "text/plain"))

    assert results.loader.load_text(reference) == "größer"
    assert results.loader.exists(reference)


def test_missing_content_is_not_found_with_its_full_place(results: Results) -> None:
    for reference, place in [("results/none.csv", "results/none.csv"), (MISSING, "sha256/00/" + "0" * 64)]:
        with pytest.raises(FileNotFoundError) as caught:
            results.loader.load_bytes(reference)

        assert isinstance(caught.value, ArtifactNotFoundError)
        assert f"{results.base}/{place}" in str(caught.value)
        assert not results.loader.exists(reference)


@pytest.mark.parametrize(
    "reference", ["../secret", "/etc/passwd", "a/../../b", "", "file:///etc/passwd", "a\\b"]
)
def test_a_reference_that_leaves_its_base_is_refused(results: Results, reference: str) -> None:
    for ask in (results.loader.load_bytes, results.loader.load_text, results.loader.exists):
        with pytest.raises(ArtifactReferenceError):
            ask(reference)


def test_a_directory_is_not_an_artifact(results: Results) -> None:
    assert not results.loader.exists("results")
    with pytest.raises(ArtifactError, match="results"):
        results.loader.load_bytes("results")


def test_bytes_that_are_not_text_are_refused_with_their_position(results: Results) -> None:
    results.write("text.txt", b"good until \xff here")

    with pytest.raises(ArtifactError, match=r"'text\.txt' is not UTF-8 text: .* at byte 11 of 17 \(0xff\)"):
        results.loader.load_text("text.txt")


def test_results_that_were_moved_load_the_same(tmp_path: Path) -> None:
    before = Results(str(tmp_path / "before"))

    shutil.move(tmp_path / "before", tmp_path / "after")
    after = loader_for(tmp_path / "after")

    assert after.load_text("results/day 1/metrics.csv") == "day,v\n1,2\n"
    assert after.load_bytes(f"cas://{before.blob.sha256}") == b"a blob"


def test_results_that_were_copied_into_a_bucket_load_the_same(tmp_path: Path, s3_url: str) -> None:
    before = Results(str(tmp_path))
    for path in tmp_path.rglob("*"):
        if path.is_file():
            Bucket(s3_url).put(str(path.relative_to(tmp_path)), path.stat().st_size, [path.read_bytes()])

    after = loader_for(s3_url, "s3")

    assert after.load_text("results/day 1/metrics.csv") == "day,v\n1,2\n"
    assert after.load_bytes(f"cas://{before.blob.sha256}") == b"a blob"


def test_a_link_that_leads_out_of_the_base_is_refused(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (tmp_path / "secret").write_text("secret")
    (base / "file").symlink_to(tmp_path / "secret")
    (base / "folder").symlink_to(tmp_path)
    (base / "loop").symlink_to("loop")

    for reference in ("file", "folder/secret"):
        with pytest.raises(ArtifactReferenceError, match="by a link"):
            LocalArtifactLoader(base).load_bytes(reference)
    with pytest.raises(ArtifactError):
        LocalArtifactLoader(base).load_bytes("loop")


def test_a_corrupt_blob_is_never_loaded(tmp_path: Path) -> None:
    blobs = open_blobs(tmp_path)
    blob = blobs.put(b"a blob")
    path = Path(blobs.place(blob.sha256))
    path.unlink()
    path.write_bytes(b"A blob")

    with pytest.raises(ArtifactCorruptError):
        CasArtifactLoader(blobs).load_bytes(f"cas://{blob.sha256}")


def test_a_store_of_blobs_has_no_files() -> None:
    loader = CasArtifactLoader(open_blobs("memory://loaders"))

    for ask in (loader.load_bytes, loader.exists):
        with pytest.raises(ArtifactReferenceError, match="memory://loaders has only blobs"):
            ask("results/metrics.csv")


def test_the_loader_is_chosen_by_the_storage_of_a_result(tmp_path: Path, s3_url: str) -> None:
    assert isinstance(loader_for(str(tmp_path), "local"), LocalArtifactLoader)
    assert isinstance(loader_for(f"file://{tmp_path}", "local"), LocalArtifactLoader)
    assert isinstance(loader_for(s3_url, "s3"), ObjectStoreArtifactLoader)
    assert isinstance(loader_for("memory://one", "memory"), ObjectStoreArtifactLoader)


@pytest.mark.parametrize("storage_type", ["s3", "tape", ""])
def test_a_storage_type_that_contradicts_its_base_is_refused(tmp_path: Path, storage_type: str) -> None:
    with pytest.raises(ArtifactError, match=f"is storage of type local, not '{storage_type}'"):
        loader_for(str(tmp_path), storage_type)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(text=st.text() | st.text("ab.:/\\\0~%C \n\ud800é", max_size=12))
def test_any_reference_is_loaded_or_an_artifact_error(text: str) -> None:
    for loader in (
        LocalArtifactLoader(Path(__file__).parent),
        ObjectStoreArtifactLoader("memory://any/prefix"),
    ):
        for ask in (loader.exists, loader.load_bytes, loader.load_text):
            with contextlib.suppress(ArtifactError):
                ask(text)


def test_a_name_that_no_file_can_have_is_an_artifact_error(tmp_path: Path) -> None:
    loader = LocalArtifactLoader(tmp_path)

    assert not loader.exists("x" * 10_000)
    with pytest.raises(ArtifactError, match="File name too long"):
        loader.load_bytes("x" * 10_000)


def test_every_loader_is_an_artifact_loader(tmp_path: Path) -> None:
    makers: list[Callable[[], ArtifactLoader]] = [
        lambda: LocalArtifactLoader(tmp_path),
        lambda: CasArtifactLoader(open_blobs(tmp_path)),
        lambda: ObjectStoreArtifactLoader("memory://two"),
    ]

    assert not any(make().exists(MISSING) for make in makers)


# -- a Modal volume -------------------------------------------------------------------


@pytest.mark.xdist_group("modal")
def test_blobs_of_a_volume_are_kept_up_to_a_size_and_files_are_not(
    modal_server: RunningServer, request: pytest.FixtureRequest
) -> None:
    url = url_of("modal", request)
    loader = ModalVolumeArtifactLoader(url, cache_max_bytes=250)
    first, second, third = (f"cas://{loader.blobs.put(bytes([n]) * 100).sha256}" for n in range(3))
    write(url, "a.txt", b"old")

    def reads(reference: str) -> int:
        before = modal_server.modal.called["VolumeGetFile2"]
        assert len(loader.load_bytes(reference)) in (3, 100)
        return modal_server.modal.called["VolumeGetFile2"] - before

    assert [reads(one) for one in (first, first, second, first, third, first, second)] == [
        1,
        0,
        1,
        0,
        1,
        0,
        1,
    ]
    assert [reads("a.txt"), reads("a.txt")] == [1, 1]


@pytest.mark.xdist_group("modal")
def test_a_volume_that_does_not_exist_is_named_with_the_command_that_makes_it(
    modal_server: RunningServer,
) -> None:
    with pytest.raises(
        ArtifactError, match=r"^modal://nothing: there is no such volume; `fullsend modal dep"
    ):
        loader_for("modal://nothing", "modal").exists("a.txt")


@pytest.mark.parametrize("url", ["modal://", "modal:///path", "modal://a@volume", "modal://volume?a"])
def test_a_url_of_a_volume_that_cant_be_right_is_refused(url: str) -> None:
    with pytest.raises(ArtifactError, match="modal://volume/prefix"):
        loader_for(url)
