"""Runs scripts of tests as root and as an ordinary user."""

import functools
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NOBODY = 65534

ROOT_AND_ORDINARY = [
    pytest.param(0, id="root", marks=pytest.mark.skipif(os.geteuid() != 0, reason="needs root")),
    pytest.param(NOBODY, id="ordinary user"),
]


def run_as(user: int, script: Path, *arguments: str) -> str:
    """What a script printed that ran as `user`; as the present user, if that is an ordinary one already."""
    is_other = os.geteuid() == 0 and user != 0
    python = _python_for_anybody() if is_other else sys.executable
    done = subprocess.run([python, str(script), *arguments], **_options(user if is_other else None))
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


@functools.cache
def _python_for_anybody() -> str:
    """An interpreter that an ordinary user may execute; the test is skipped if there is none."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        try:
            done = subprocess.run([python, "-c", "import structlog, msgspec"], **_options(NOBODY))
        except OSError:
            continue
        if done.returncode == 0:
            return python
    pytest.skip("an ordinary user can't execute this interpreter")


def _options(user: int | None) -> dict[str, Any]:
    """Of a process with a small environment that finds what is installed, in a directory for anybody."""
    environ = {
        "PATH": os.environ["PATH"],
        "TMPDIR": "/tmp",
        "PYTHONPATH": os.pathsep.join([str(ROOT), sysconfig.get_path("purelib")]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    options: dict[str, Any] = {
        "capture_output": True,
        "text": True,
        "timeout": 100,
        "cwd": "/",
        "env": environ,
    }
    return options if user is None else {**options, "user": user, "group": user, "extra_groups": []}
