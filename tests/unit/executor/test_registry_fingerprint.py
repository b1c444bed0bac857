"""The fingerprint of what describes tools changes with all that descriptions depend on."""

import subprocess
import sys
from pathlib import Path

import pytest

from services.executor.isolation.sandbox import Sandbox
from services.executor.tools.registry import fingerprint_of


def test_it_is_the_same_in_another_process() -> None:
    text = "from services.executor.tools.registry import fingerprint_of\nprint(fingerprint_of(['process']))"

    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == fingerprint_of(["process"])


def test_it_changes_with_the_confinement() -> None:
    fingerprints = {
        fingerprint_of([Sandbox.OFF]),
        fingerprint_of([Sandbox.FILES]),
        fingerprint_of([Sandbox.FILES, Path("/x")]),
    }

    assert len(fingerprints) == 3


def test_it_changes_with_the_installed_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    none = fingerprint_of([])

    (tmp_path / "some-1.0.dist-info").mkdir()
    first = fingerprint_of([])
    (tmp_path / "some-1.0.dist-info").rename(tmp_path / "some-1.1.dist-info")

    assert len({none, first, fingerprint_of([])}) == 3


def test_it_changes_with_our_code(tmp_path: Path) -> None:
    (tmp_path / "child").mkdir()
    code = tmp_path / "child" / "describe.py"

    code.write_text("x = 1")
    first = fingerprint_of([], tmp_path)
    code.write_text("x = 2")

    assert fingerprint_of([], tmp_path) != first
