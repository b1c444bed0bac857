"""Who describes tools has another name when it may say something else."""

import subprocess
import sys
from pathlib import Path

import pytest

from services.executor import fingerprint as module
from services.executor.fingerprint import describer
from services.executor.isolation.sandbox import Sandbox

OURS = describer(Sandbox.OFF, ())


def test_it_is_the_same_in_another_process() -> None:
    text = (
        "from services.executor.fingerprint import describer\n"
        "from services.executor.isolation.sandbox import Sandbox\n"
        "print(describer(Sandbox.OFF, ()))"
    )

    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == OURS


def test_other_confinement_is_another() -> None:
    names = {
        describer(Sandbox.OFF, ()),
        describer(Sandbox.FILES, ()),
        describer(Sandbox.FILES, (Path("/x"),)),
    }

    assert len(names) == 3


def test_another_package_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    alone = describer(Sandbox.OFF, ())

    (tmp_path / "some-1.0.dist-info").mkdir()
    first = describer(Sandbox.OFF, ())
    (tmp_path / "some-1.0.dist-info").rename(tmp_path / "some-1.1.dist-info")

    assert len({alone, first, describer(Sandbox.OFF, ())}) == 3


def test_other_code_of_ours_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "child").mkdir()
    code = tmp_path / "child" / "describe.py"
    monkeypatch.setattr(module, "OURS", tmp_path)

    code.write_text("x = 1")
    first = describer(Sandbox.OFF, ())
    code.write_text("x = 2")

    assert describer(Sandbox.OFF, ()) != first
