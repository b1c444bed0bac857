"""A pool's directory stays while its process lives, and is removed after that was killed."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from services.executor.isolation.workdir import PoolDirectory, remove_abandoned

KILLED = """
import os
from services.executor.isolation.workdir import PoolDirectory
print(PoolDirectory.create().path)
os.abort()
"""


@pytest.fixture(autouse=True)
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def test_the_directory_of_a_killed_pool_is_removed() -> None:
    printed = subprocess.run(
        [sys.executable, "-u", "-c", KILLED], capture_output=True, check=False, text=True
    )
    left = Path(printed.stdout.strip())
    assert left.is_dir()
    (left / "1").mkdir()

    remove_abandoned()

    assert not left.exists()


def test_a_directory_in_use_or_of_another_program_stays(temp: Path) -> None:
    directory = PoolDirectory.create()
    (temp / "fullsend-of-another-program").mkdir()

    remove_abandoned()

    assert directory.path.is_dir()
    assert (temp / "fullsend-of-another-program").is_dir()
    directory.remove()


def test_a_directory_is_removed_with_everything_in_it() -> None:
    directory = PoolDirectory.create()
    (directory.path / "1" / "temp").mkdir(parents=True)

    directory.remove()

    assert not directory.path.exists()
