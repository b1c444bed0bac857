"""A store in a directory: crashes, full disks, concurrent writers, links among the blobs."""

import fcntl
import hashlib
import io
import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from services.executor.artifacts import Blob, LocalBlobs, Source
from shared.errors import ArtifactCorruptError, ArtifactError
from tests.artifacts.processes import finish, start

CONTENT = b"content"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
LONG_AGO = datetime.now(UTC) - timedelta(days=2)


def files_in(directory: Path) -> set[str]:
    """Return the path of every file below the directory, except the lock."""
    paths = (path for path in directory.rglob("*") if not path.is_dir())
    return {str(path.relative_to(directory)) for path in paths} - {"lock"}


def make_old(path: Path) -> None:
    """Set the file's time to long ago."""
    os.utime(path, (LONG_AGO.timestamp(), LONG_AGO.timestamp()))


def test_a_blob_is_a_read_only_file_named_by_its_content(local: LocalBlobs) -> None:
    local.put(CONTENT)

    path = local.directory / "sha256" / SHA256[:2] / SHA256
    assert files_in(local.directory) == {f"sha256/{SHA256[:2]}/{SHA256}"}
    assert path.read_bytes() == CONTENT
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert local.place(SHA256) == str(path)


def test_reading_creates_no_directory(local: LocalBlobs) -> None:
    assert not local.exists(SHA256)
    assert not local.delete(SHA256)
    assert list(local.all()) == []
    assert local.clear_leftovers(datetime.now(UTC)) == 0

    assert not local.directory.exists()


def test_a_relative_directory_does_not_move_with_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    blobs = LocalBlobs("blobs")
    monkeypatch.chdir("/")

    blobs.put(CONTENT)

    assert blobs.base == str(tmp_path / "blobs")
    assert (tmp_path / "blobs").is_dir()


def test_putting_a_duplicate_renews_its_age(local: LocalBlobs) -> None:
    local.put(CONTENT)
    make_old(Path(local.place(SHA256)))

    local.put(CONTENT)

    [stored] = local.all()
    assert stored.modified_at > LONG_AGO + timedelta(days=1)


@pytest.mark.parametrize("kind", ["directory", "link", "fifo"])
def test_a_link_or_directory_in_a_blobs_place_is_corrupt(
    local: LocalBlobs, tmp_path: Path, kind: str
) -> None:
    path = Path(local.place(SHA256))
    path.parent.mkdir(parents=True)
    (tmp_path / "target").write_bytes(CONTENT)
    match kind:
        case "directory":
            path.mkdir()
        case "link":
            path.symlink_to(tmp_path / "target")
        case _:
            os.mkfifo(path)

    for ask in (local.read, local.verify, local.size):
        with pytest.raises(ArtifactCorruptError, match=str(path)):
            ask(SHA256)
    assert not local.exists(SHA256)
    assert list(local.all()) == []


def test_a_link_in_a_blobs_place_is_replaced_and_its_target_left_alone(
    local: LocalBlobs, tmp_path: Path
) -> None:
    target, path = tmp_path / "target", Path(local.place(SHA256))
    target.write_bytes(b"not ours")
    path.parent.mkdir(parents=True)
    path.symlink_to(target)

    local.put(CONTENT)

    assert local.read(SHA256) == CONTENT
    assert target.read_bytes() == b"not ours"


def test_a_directory_in_a_blobs_place_is_an_error_that_names_it(local: LocalBlobs) -> None:
    path = Path(local.place(SHA256))
    path.mkdir(parents=True)

    with pytest.raises(ArtifactError, match=f"{path}: Is a directory"):
        local.put(CONTENT)

    assert files_in(local.directory) == set()


def test_a_base_that_is_a_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "blobs").write_text("a file")
    blobs = LocalBlobs(tmp_path / "blobs")

    with pytest.raises(ArtifactError, match=str(tmp_path / "blobs")):
        blobs.put(CONTENT)


# -- crashes -----------------------------------------------------------------------------

DIES_BEFORE_THE_RENAME = """
    import os, signal, sys
    from services.executor.artifacts import LocalBlobs

    os.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    LocalBlobs(sys.argv[1]).put(b"content")
"""


def test_a_crash_between_write_and_rename_leaves_no_blob(local: LocalBlobs) -> None:
    with start(DIES_BEFORE_THE_RENAME, local.directory) as process:
        process.communicate(timeout=60)

    [left] = files_in(local.directory)
    assert process.returncode == -signal.SIGKILL
    assert left.startswith("tmp/")
    assert not local.exists(SHA256)
    assert list(local.all()) == []
    assert local.put(CONTENT) == Blob(SHA256, len(CONTENT))
    assert local.read(SHA256) == CONTENT


def test_only_leftovers_of_a_certain_age_are_cleared(local: LocalBlobs) -> None:
    local.put(CONTENT)
    old, young = local.directory / "tmp" / "old", local.directory / "tmp" / "young"
    old.write_bytes(b"12345")
    young.write_bytes(b"123")
    make_old(old)
    make_old(Path(local.place(SHA256)))
    yesterday = datetime.now(UTC) - timedelta(days=1)

    rehearsed_bytes = local.clear_leftovers(yesterday, dry_run=True)
    existed = old.exists()
    freed_bytes = local.clear_leftovers(yesterday)

    assert (rehearsed_bytes, existed, freed_bytes) == (5, True, 5)
    assert files_in(local.directory) == {"tmp/young", f"sha256/{SHA256[:2]}/{SHA256}"}


# -- a full disk -------------------------------------------------------------------------


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[LocalBlobs]:
    """A store on a disk of one MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "fullsend-test", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk is made by mounting one, and this user may not")
    try:
        yield LocalBlobs(disk / "blobs")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("kind", ["bytes", "file", "stream"])
def test_a_full_disk_says_what_is_needed_and_keeps_nothing(
    full_disk: LocalBlobs, tmp_path: Path, kind: str
) -> None:
    size_bytes = 3 << 20
    path = tmp_path / "large"
    path.write_bytes(os.urandom(size_bytes))
    small = full_disk.put(CONTENT)
    sources: dict[str, Source] = {
        "bytes": path.read_bytes(),
        "file": path,
        "stream": io.BytesIO(path.read_bytes()),
    }

    with pytest.raises(ArtifactError) as caught:
        full_disk.put(sources[kind])

    said = str(caught.value)
    assert said.startswith(f"{full_disk.directory} is full: ")
    assert f"{size_bytes} bytes are needed" in said or kind == "stream"
    assert "bytes are free" in said
    assert "fullsend artifacts gc" in said
    assert files_in(full_disk.directory) == {f"sha256/{SHA256[:2]}/{small.sha256}"}
    assert full_disk.read(small.sha256) == CONTENT
    assert full_disk.put(b"room is there again").size_bytes == 19


# -- others at the same time -------------------------------------------------------------

WRITES_ONE_BLOB = """
    import sys
    from services.executor.artifacts import LocalBlobs

    content = b"the same content " * 100_000
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(10):
        blob = LocalBlobs(sys.argv[1]).put(content)
    print(blob.sha256)
"""


def test_two_writers_of_one_blob_both_succeed_and_leave_one_file(local: LocalBlobs) -> None:
    content = b"the same content " * 100_000
    sha256 = hashlib.sha256(content).hexdigest()
    writers = [start(WRITES_ONE_BLOB, local.directory) for _ in range(2)]
    for writer in writers:
        assert writer.stdout is not None
        writer.stdout.readline()

    printed = [finish(writer, "go\n") for writer in writers]

    assert printed == [f"{sha256}\n"] * 2
    assert files_in(local.directory) == {f"sha256/{sha256[:2]}/{sha256}"}
    assert local.read(sha256) == content


def test_a_delete_waits_for_a_put_and_checks_the_age_again(local: LocalBlobs) -> None:
    local.put(CONTENT)
    make_old(Path(local.place(SHA256)))
    cutoff = datetime.now(UTC) - timedelta(days=1)

    with (local.directory / "lock").open() as lock, ThreadPoolExecutor(1) as others:
        fcntl.flock(lock, fcntl.LOCK_SH)
        deleted = others.submit(local.delete, SHA256, unless_put_after=cutoff)
        local.put(CONTENT)
        fcntl.flock(lock, fcntl.LOCK_UN)

        assert deleted.result(timeout=60) is False
    assert local.read(SHA256) == CONTENT
