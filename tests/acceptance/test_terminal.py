"""A terminal gets no control characters from names, logs and results, whatever command shows them."""

import asyncio
import fcntl
import json
import os
import pty
import re
import signal
import struct
import termios
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from shared import keys
from tests.acceptance.commands import FULLSEND, Shell
from tests.conftest import Neighbour, Tools

HOSTILE = (
    "a\x1b[2J\x1b]0;owned\x07\x1b]8;;http://evil\x1b\\b\x9b2J\x9d0;x\x9c\u202eevil\u2066\x08\x7f\r\u200fz"
)
RUN, OTHER = "exp_1:1700000000000-0", "exp_1:1700000000001-0"

FORBIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"
)
OURS = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]|\r?\x1b\[[0-9]*[AK]")
"""What rich writes itself: colours, the cursor hidden and shown, a line erased."""


@pytest.fixture
async def hostile(neighbour: Neighbour) -> None:
    """Redis, full of texts that would do something to a terminal."""
    redis: Any = neighbour.redis
    artifact = {
        "reference": "data:text/plain;base64,eA==",
        "size_bytes": 1,
        "sha256": "a",
        "media_type": HOSTILE,
    }
    record = {
        "run_id": RUN, "experiment_id": "exp_1", "status": "failed", "tool": HOSTILE, "error": HOSTILE,
        "error_type": HOSTILE, "traceback": f"x\n{HOSTILE}", "worker": HOSTILE, "attempt": HOSTILE,
        "trigger": HOSTILE, "triggered_by": HOSTILE, "params": json.dumps({HOSTILE: HOSTILE}),
        "result_summary": json.dumps({HOSTILE: HOSTILE}), "partial_results": json.dumps([HOSTILE]),
        "artifacts": json.dumps({HOSTILE: artifact}), "finished_at": HOSTILE, "started_at": HOSTILE,
        "exit": json.dumps({"signal": HOSTILE, "last_lines": [HOSTILE], "stacks": HOSTILE}),
    }  # fmt: skip
    await redis.hset(f"experiment_runs:{RUN}", mapping=record)
    await redis.hset(
        f"experiment_runs:{OTHER}", mapping=record | {"run_id": OTHER, "tool": "x", "error": "y"}
    )
    await redis.xadd(keys.logs(RUN), {"at": "1.0", "stream": "stdout", "text": HOSTILE})
    await redis.hset("tools:odd", mapping={"status": HOSTILE, "description": HOSTILE, "parameters": HOSTILE})
    await redis.set(f"experiments:{HOSTILE}", HOSTILE)
    await redis.hset("experiments:exp_1", mapping={"tool": HOSTILE, "state": "ready"})
    for name in ("exp_1", HOSTILE):
        await redis.set(f"schedules:{name}", HOSTILE)
    for kind, more in (("metric", {"event": HOSTILE}), ("metric", {"event": "run_started", "tool": HOSTILE}),
                       ("metric", {"event": "progress", "message": HOSTILE, "done": HOSTILE}),
                       ("result", {"type": "experiment_completed", "result_summary": {HOSTILE: HOSTILE}}),
                       ("result", {"status": HOSTILE, "error": HOSTILE})):  # fmt: skip
        data = json.dumps({"experiment_id": HOSTILE, "run_id": HOSTILE, **more})
        await redis.xadd(keys.journal(), {"kind": kind, "data": data})


COMMANDS = [
    ("runs",), ("runs", "--json"), ("show", RUN), ("show", RUN, "--json"), ("show", HOSTILE),
    ("logs", RUN), ("logs", RUN, "--times"), ("diff", RUN, OTHER), ("diff", RUN, OTHER, "--json"),
    ("artifacts", "ls", RUN), ("artifacts", "ls", RUN, "--json"), ("artifacts", "get", RUN, HOSTILE),
    ("artifacts", "get", RUN, "none"), ("tools",), ("tools", "--json"), ("schedules",),
    ("schedules", "--json"), ("doctor",), ("doctor", "--json"), ("trigger", HOSTILE),
    ("cancel", f"{HOSTILE}:1-0"), ("publish", "odd.yaml"), ("plan", "ls"), (HOSTILE,),
]  # fmt: skip


@pytest.mark.usefixtures("hostile")
@pytest.mark.parametrize(
    "arguments", COMMANDS, ids=lambda one: " ".join(one)[:30].encode("unicode_escape").decode()
)
async def test_no_command_passes_control_characters_on(arguments: tuple[str, ...], shell: Shell) -> None:
    (shell.directory / "odd.yaml").write_text(json.dumps({"experiment": {"id": HOSTILE, HOSTILE: 1}}))
    safe = [one.replace("\x00", "") for one in arguments]

    shown = await on_a_terminal([str(FULLSEND), *safe], shell.directory, shell.variables)

    assert shown.strip()
    assert_harmless(shown)


@pytest.mark.usefixtures("hostile")
@pytest.mark.parametrize("options", [(), ("--json",)])
async def test_what_is_watched_is_harmless(options: tuple[str, ...], shell: Shell) -> None:
    command = [str(FULLSEND), "watch", "--since", "0", *options]

    shown = await on_a_terminal(command, shell.directory, shell.variables, until="5")

    assert len(shown.splitlines()) > 4
    assert_harmless(shown)


PLAN_TOOL = f"""
import sys
def odd(a, b): print({HOSTILE!r}, file=sys.stderr); raise ValueError({HOSTILE!r})
def run(**parameters): odd(1, 2)
def aggregate(replicates, target_data): return {{"loss": 1.0, "diagnostics": {{{HOSTILE!r}: {HOSTILE!r}}}}}
def fail(replicates, target_data): odd(1, 2)
"""
SWEEP = ("sweep", "ring", "--kappa", "1", "--concentration", "1", "--replicates", "1")


@pytest.mark.usefixtures("hostile")
async def test_plans_sweeps_and_aggregations_are_harmless(
    shell: Shell, tools: Tools, neighbour: Neighbour
) -> None:
    for name in ("odd", "ring_simulation"):
        tools(name, PLAN_TOOL)
    redis: Any = neighbour.redis
    await redis.hset(f"experiment_runs:{RUN}", mapping={"status": "completed", "artifacts": "{}"})
    case = {"parameters": {"a": HOSTILE, "b": 1}, "dataset": HOSTILE, "metadata": {HOSTILE: HOSTILE}}
    manifest = {"workflow_id": HOSTILE, "tool": "odd", "cases": [case]}
    (shell.directory / "plan.yaml").write_text(json.dumps(manifest))

    for arguments in (
        ("plan", "run", "plan.yaml", "--directory", "p"), (*SWEEP, "--directory", "q"),
        ("aggregate", "odd", RUN), ("aggregate", "odd", RUN, "--function", "fail"),
    ):  # fmt: skip
        shown = await on_a_terminal([str(FULLSEND), *arguments], shell.directory, shell.variables)

        assert shown.strip(), arguments
        assert_harmless(shown)


async def test_a_tools_description_is_harmless(tools: Tools, tmp_path: Path) -> None:
    path = tools("odd", f'def odd(a={HOSTILE!r}):\n    """About {HOSTILE!r} and \\x1b[2J \\u202e."""\n')
    command = [str(FULLSEND.with_name("python")), "-m", "services.executor.loader", "--test", str(path)]

    shown = await on_a_terminal(command, Path(__file__).parents[2], {})

    assert "About" in shown
    assert_harmless(shown)


async def test_the_log_of_a_worker_on_a_terminal_is_harmless(
    shell: Shell, neighbour: Neighbour, tools: Tools
) -> None:
    tools("odd", f"def odd(): raise ValueError({HOSTILE!r})")
    await neighbour.publish("exp_1", "odd")
    variables = {**shell.variables, "HEARTBEAT_TTL": "1"}
    running = asyncio.create_task(
        on_a_terminal([str(FULLSEND), "worker"], shell.directory, variables, until="run.failed")
    )
    while await neighbour.trigger({"experiment_id": "exp_1"}) < 1:
        await asyncio.sleep(0.05)
    shown = await running

    assert "run.failed" in shown
    assert_harmless(shown)


def assert_harmless(shown: str) -> None:
    rest = OURS.sub("", shown.replace("\r\n", "\n"))
    assert "\x1b" not in rest, ascii(rest)
    assert "\r" not in rest, ascii(rest)
    assert FORBIDDEN.search(rest) is None, ascii(rest)


async def on_a_terminal(
    command: list[str], directory: Path, variables: Mapping[str, str], until: str = ""
) -> str:
    """What a command writes to a terminal; with `until`, it is interrupted when it has written that."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 180, 0, 0))
    passed = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    process = await asyncio.create_subprocess_exec(
        *command, cwd=directory, env={**passed, "TERM": "xterm-256color", **variables},
        stdin=asyncio.subprocess.DEVNULL, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    os.set_blocking(ours, False)
    content = bytearray()
    async with asyncio.timeout(60):
        while True:
            ended = process.returncode is not None
            content += _available(ours)
            if ended:
                break
            if until and _enough(content.decode(errors="replace"), until):
                process.send_signal(signal.SIGINT)
                until = ""
            await asyncio.sleep(0.02)
    os.close(ours)
    return content.decode(errors="replace")


def _enough(shown: str, until: str) -> bool:
    return shown.count("\n") > int(until) if until.isdecimal() else until in shown


def _available(terminal: int) -> bytes:
    content = b""
    while True:
        try:
            chunk = os.read(terminal, 65_536)
        except OSError:  # there is nothing more now, or the other end is closed
            return content
        if not chunk:
            return content
        content += chunk
