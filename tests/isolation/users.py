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
PATIENCE_SECONDS = 100.0

ROOT_AND_ORDINARY = [
    pytest.param(0, id="root", marks=pytest.mark.skipif(os.geteuid() != 0, reason="needs root")),
    pytest.param(NOBODY, id="ordinary user"),
]


def run_as(user: int, script: Path, *arguments: str) -> str:
    """What a script printed that ran as `user`; as the present user, if that is an ordinary one already."""
    with start_as(user, script, *arguments) as process:
        try:
            output, errors = process.communicate(timeout=PATIENCE_SECONDS)
        finally:
            process.kill()
    assert process.returncode == 0, errors
    return output


def start_as(user: int, script: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a script as `run_as` does."""
    is_other = os.geteuid() == 0 and user != 0
    python = _python_for_anybody() if is_other else sys.executable
    return subprocess.Popen(
        [python, str(script), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **_options(user if is_other else None),
    )


@functools.cache
def _python_for_anybody() -> str:
    """An interpreter that an ordinary user may execute; the test is skipped if there is none."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        try:
            done = subprocess.run(
                [python, "-c", "import structlog, msgspec"], capture_output=True, **_options(NOBODY)
            )
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
    options: dict[str, Any] = {"text": True, "cwd": "/", "env": environ}
    return options if user is None else {**options, "user": user, "group": user, "extra_groups": []}
