"""Other processes that store blobs, each a few lines of Python that the test starts."""

import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    """Start Python with that program, its text dedented; it uses its stdin and stdout."""
    command = [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str], said: str | None = None) -> str:
    """Send `said`, and return all that the process prints; it must exit with 0."""
    with process:
        printed, _ = process.communicate(said, timeout=60)
    assert process.returncode == 0
    return printed


def peak_bytes() -> int:
    """The most memory that this process ever used.

    Not `ru_maxrss`: that begins with what the process that started this one had used.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
