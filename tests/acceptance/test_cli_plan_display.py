"""The progress of a plan on terminals of several widths, and without a terminal."""

import asyncio
import fcntl
import json
import os
import pty
import re
import struct
import termios
from pathlib import Path
from typing import Final

import pytest

from tests.acceptance.commands import FULLSEND, Shell

WIDTH: Final = 80
CONTROL: Final = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|[()][0-9A-Za-z]|.)")
UPWARD: Final = re.compile(r"\x1b\[[0-9]*A")

TOOL: Final = """
import time

def work(n):
    time.sleep(0.1)
    if n == 3:
        raise ValueError("three")
"""


@pytest.fixture
def here(tmp_path: Path) -> Shell:
    """A directory with a plan that takes two seconds, without Redis."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "work.py").write_text(TOOL)
    manifest = {
        "workflow_id": "a plan with rather a long name",
        "tool": "work",
        "sweep": {"dimensions": {"n": list(range(20))}},
    }
    (tmp_path / "plan.json").write_text(json.dumps(manifest))
    return Shell(tmp_path, {"TERM": "xterm-256color"})


@pytest.mark.parametrize("width", [WIDTH, 40, 200])
async def test_the_bar_is_one_line_on_a_terminal(here: Shell, width: int) -> None:
    shown = await on_a_terminal(here, width, "plan", "run", "plan.json")

    lines = [CONTROL.sub("", line) for line in re.split(r"[\r\n]+", shown)]
    bars = [line for line in lines if "of 20 done" in line or "…" in line]
    assert len(bars) > 5
    assert max(map(len, bars)) <= width
    assert not UPWARD.search(shown), "the bar took more than a line"
    assert any("\N{BOX DRAWINGS HEAVY HORIZONTAL}" in line for line in bars) == (width > 40)
    if width >= WIDTH:
        assert "19 of 20 done, 1 failed, 0 running" in bars[-1]
        assert any("to go" in line for line in bars)


async def test_the_terminal_is_restored(here: Shell) -> None:
    shown = await on_a_terminal(here, WIDTH, "plan", "run", "plan.json")

    hidden, visible = shown.rfind("\x1b[?25l"), shown.rfind("\x1b[?25h")
    assert -1 < hidden < visible


@pytest.mark.parametrize(
    "variables", [{}, {"FORCE_COLOR": "1"}, {"TTY_COMPATIBLE": "1", "TTY_INTERACTIVE": "1"}]
)
async def test_without_a_terminal_there_are_no_control_sequences(
    here: Shell, variables: dict[str, str]
) -> None:
    done = await Shell(here.directory, {**here.variables, **variables}).fullsend("plan", "run", "plan.json")

    assert "\x1b" not in done.err
    assert "19 of 20 done, 1 failed, 0 running" in done.err.splitlines()[-1]


async def test_a_dumb_terminal_gets_plain_lines(here: Shell) -> None:
    shell = Shell(here.directory, {"TERM": "dumb"})

    shown = await on_a_terminal(shell, WIDTH, "plan", "run", "plan.json")

    assert "\x1b" not in shown
    assert "19 of 20 done, 1 failed, 0 running" in shown.splitlines()[-1]


async def on_a_terminal(shell: Shell, width: int, *arguments: str) -> str:
    """Run a command whose standard error is a terminal of this width; what it writes there."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    variables = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    try:
        process = await asyncio.create_subprocess_exec(
            str(FULLSEND), *arguments, cwd=shell.directory, env={**variables, **shell.variables},
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=theirs,
        )  # fmt: skip
    finally:
        os.close(theirs)
    shown = asyncio.create_task(asyncio.to_thread(_all_of, ours))
    async with asyncio.timeout(60):
        await process.wait()
        return await shown


def _all_of(terminal: int) -> str:
    """Read what is written to a terminal until it is closed."""
    content = bytearray()
    with os.fdopen(terminal, "rb", buffering=0) as file:
        while chunk := _read(file.fileno()):
            content += chunk
    return content.decode()


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65_536)
    except OSError:  # how Linux says that the other end is closed
        return b""
