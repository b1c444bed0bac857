"""A pool's directory is its own while it lives, and nobody's when it was killed."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from services.executor.isolation.ground import Ground, clear

KILLED = (
    "import os; from services.executor.isolation.ground import Ground; print(Ground.claim().path); os.abort()"
)


@pytest.fixture(autouse=True)
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def test_what_a_killed_owner_left_is_cleared_away() -> None:
    printed = subprocess.run(
        [sys.executable, "-u", "-c", KILLED], capture_output=True, check=False, text=True
    )
    left = Path(printed.stdout.strip())
    assert left.is_dir()
    (left / "1").mkdir()

    clear()

    assert not left.exists()


def test_what_is_in_use_or_somebody_elses_stays(temp: Path) -> None:
    ground = Ground.claim()
    (temp / "fullsend-of-another-program").mkdir()

    clear()

    assert ground.path.is_dir()
    assert (temp / "fullsend-of-another-program").is_dir()
    ground.give_up()


def test_what_is_given_up_is_gone() -> None:
    ground = Ground.claim()
    (ground.path / "1" / "temp").mkdir(parents=True)

    ground.give_up()

    assert not ground.path.exists()
