"""`fullsend demo`, which `make demo` runs."""

import asyncio
import contextlib
import fcntl
import os
import pty
import signal
import struct
import termios
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.acceptance.commands import FULLSEND, Shell, family, interrupted, line_with, survivors
from tests.conftest import eventually

EXPERIMENTS = sorted(
    path.stem for path in (Path(__file__).parents[2] / "config" / "experiments").glob("*.yaml")
)
HIDE_CURSOR, SHOW_CURSOR = b"\x1b[?25l", b"\x1b[?25h"


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """An empty directory; the demo uses the project's experiments."""
    return Shell(tmp_path, {})


async def test_the_demo_shows_every_kind_of_end_and_stops_by_itself(shell: Shell) -> None:
    async with shell.started(str(FULLSEND), "demo") as demo:
        await line_with(demo, "killed", "exp_demo_hang")
        processes = family(demo.pid)
        rest, err = await demo.communicate()

    lines = rest.decode().splitlines()
    summary = lines[next(at for at, line in enumerate(lines) if line.startswith("EXPERIMENT")) :]
    assert demo.returncode == 0
    assert err == b""
    assert [line.split()[0] for line in summary[1:]] == EXPERIMENTS
    for what in ("started", "progress", "finished", "failed", "retrying", "killed"):
        assert any(f" s  {what} " in line for line in lines), what
    assert len(processes) > 2
    assert survivors(processes) == []


async def test_the_demo_stops_cleanly_on_ctrl_c_and_runs_again_in_the_same_directory(
    shell: Shell,
) -> None:
    async with shell.started(str(FULLSEND), "demo", "--forever") as first:
        await line_with(first, "started", "exp_demo_slow_batch")
        processes = family(first.pid)
        cut = await interrupted(first)
    async with shell.started(str(FULLSEND), "demo", "--forever") as second:
        await line_with(second, "finished")
        processes |= family(second.pid)
        again = await interrupted(second)

    assert (cut.code, cut.err) == (0, "")
    assert (again.code, again.err) == (0, "")
    assert "EXPERIMENT" in cut.out
    assert "EXPERIMENT" in again.out
    assert survivors(processes) == []


async def test_other_commands_find_the_server_of_the_demo(shell: Shell) -> None:
    async with shell.started(str(FULLSEND), "demo", "--forever") as demo:
        await line_with(demo, "finished")
        done = await shell.fullsend("trigger", "exp_demo_quick_batch", "--param", "param2=3", "--wait")
        await interrupted(demo)

    assert done.code == 0, done
    assert '"count": 3' in done.lines[-1]


async def test_the_demo_runs_the_other_ready_experiments_of_its_directory(shell: Shell) -> None:
    (shell.directory / "mine.yaml").write_text(
        "experiment: {id: exp_mine, execution: {tool: example_tool, params: {param1: x, param2: 1}}}"
    )
    async with shell.started(str(FULLSEND), "demo", "--forever") as demo:
        published = await shell.fullsend("publish", "mine.yaml")
        await line_with(demo, "finished", "exp_mine")
        await interrupted(demo)

    assert published.code == 0, published


async def test_the_demo_is_live_on_a_terminal_and_restores_it(shell: Shell) -> None:
    async with on_terminal(shell.directory, str(FULLSEND), "demo", "--forever") as (demo, shown):
        await eventually(
            lambda: _contains(shown, "✓", "━", "running"), "a run that has ended, and one under way"
        )
        demo.send_signal(signal.SIGINT)
        code = await demo.wait()
        await eventually(lambda: _contains(shown, "LAST ERROR"), "the summary")

    assert code == 0
    assert HIDE_CURSOR in shown
    assert shown.rindex(SHOW_CURSOR) > shown.rindex(HIDE_CURSOR)
    assert b"Traceback" not in shown
    assert b'"event"' not in shown  # the service's log is elsewhere
    assert b"service.stopped" in (shell.directory / ".fullsend" / "demo.log").read_bytes()


async def test_a_signal_while_the_server_starts_leaves_no_process_behind(shell: Shell) -> None:
    """The signal comes right after the demo's first child process has appeared."""
    async with shell.started(str(FULLSEND), "demo") as demo:

        async def has_child() -> bool:
            return len(family(demo.pid)) > 1

        await eventually(has_child, "the server's process")
        processes = family(demo.pid)
        done = await interrupted(demo)

    assert done.code == 0
    assert done.err == ""
    assert survivors(processes) == []


@contextlib.asynccontextmanager
async def on_terminal(
    directory: Path, *command: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, bytearray]]:
    """Run a command on a terminal of its own; the process, and its output so far."""
    ours, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    loop, shown = asyncio.get_running_loop(), bytearray()

    def read() -> None:
        try:
            shown.extend(os.read(ours, 65_536))
        except OSError:  # nobody has the other side open any more
            loop.remove_reader(ours)

    environ = {**os.environ, "TERM": "xterm-256color"}
    process = await asyncio.create_subprocess_exec(
        *command, cwd=directory, env=environ, stdin=terminal, stdout=terminal, stderr=terminal
    )
    os.close(terminal)
    loop.add_reader(ours, read)
    try:
        yield process, shown
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        loop.remove_reader(ours)
        os.close(ours)


async def _contains(shown: bytearray, *texts: str) -> bool:
    return all(text.encode() in shown for text in texts)
