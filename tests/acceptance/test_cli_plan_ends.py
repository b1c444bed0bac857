"""`fullsend plan` stops promptly whatever it does, with the right exit code, and can be resumed."""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest

from services.planner.plan import Plan
from tests.acceptance.commands import Running, Shell, family, survivors
from tests.conftest import eventually

PROMPTLY_SECONDS: Final = 15
"""Generous, for a loaded machine; the tool would block for ten minutes."""

CANCEL: Final = 0
EXIT_CODES: Final = {signal.SIGINT: 130, signal.SIGTERM: 143, CANCEL: 1}

TOOL: Final = """
import time
from pathlib import Path
from shared import toolkit

HERE = Path({here!r})

def _wait(what):
    if (HERE / ("slow." + what)).exists():
        (HERE / ("begun." + what)).touch()
        time.sleep(600)

_wait("import")

def work(n):
    return {{"n": n, "much": "x" * 100_000}}

def aggregate(replicates, target_data):
    _wait("aggregate")
    return {{"loss": len(replicates)}}
"""

pytestmark = pytest.mark.parametrize("wish", EXIT_CODES, ids=("ctrl_c", "sigterm", "plan_cancel"))


@pytest.fixture
def here(tmp_path: Path) -> Shell:
    """A directory with a tool and a plan, without Redis."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "work.py").write_text(TOOL.format(here=str(tmp_path)))
    manifest = {
        "workflow_id": "plan",
        "tool": "work",
        "cases": [{"parameters": {"n": 1}, "replicates": 3}],
        "evaluator": {},
    }
    (tmp_path / "plan.json").write_text(json.dumps(manifest))
    return Shell(tmp_path, {})


@pytest.mark.parametrize(("what", "state"), [("import", "stopped"), ("aggregate", "completed")])
async def test_a_plan_stops_while_its_tool_blocks(here: Shell, wish: int, what: str, state: str) -> None:
    slow, begun = here.directory / f"slow.{what}", here.directory / f"begun.{what}"
    slow.touch()

    async with here.called("plan", "run", "plan.json", "--directory", "p") as process:
        await eventually(lambda: _is_there(begun), f"the {what}")
        meanwhile = await _status(here)
        below = family(process.pid)
        await _ended_by(here, process, wish)
    ended = await _status(here)
    slow.unlink()
    resumed = await here.fullsend("plan", "resume", "p")

    assert process.returncode == EXIT_CODES[wish]
    assert (meanwhile["state"], meanwhile["session"]["backend"]) == ("running", "local")
    assert survivors(below) == []
    assert (ended["state"], ended["session"]["stopped"]) == (state, _reason(wish))
    assert resumed.code == 0, resumed
    assert [one.attempt_count for one in Plan.open(here.directory / "p").results()] == [1] * 3
    report = json.loads((here.directory / "p" / "report" / "report.json").read_text())
    assert [one["loss"] for one in report["evaluations"]] == [3]


async def test_a_plan_stops_while_its_report_waits_for_a_disk(here: Shell, wish: int) -> None:
    await here.fullsend("plan", "run", "plan.json", "--directory", "p")

    async with here.called("plan", "resume", "p") as process:
        draft = here.directory / "p" / "report" / f".cases.csv.{process.pid}"
        os.mkfifo(draft)  # and nobody reads what is written there
        assert process.stderr is not None
        while b"3 of 3 done" not in await process.stderr.readline():
            pass
        meanwhile = await _status(here)
        await _ended_by(here, process, wish)
    ended = await _status(here)
    draft.unlink()
    resumed = await here.fullsend("plan", "resume", "p")

    assert process.returncode == EXIT_CODES[wish]
    assert meanwhile["state"] == "running"
    assert (ended["state"], ended["session"]["stopped"]) == ("completed", _reason(wish))
    assert resumed.code == 0, resumed


async def test_a_plan_stops_while_redis_does_not_answer(here: Shell, wish: int) -> None:
    async with _silent_redis() as (url, called):
        shell = Shell(here.directory, {"REDIS_URL": url})
        command = ("plan", "run", "plan.json", "--directory", "p", "--backend", "fleet")
        async with shell.called(*command) as process:
            await called.wait()
            meanwhile = await _status(here)
            await _ended_by(here, process, wish)
    ended = await _status(here)
    resumed = await here.fullsend("plan", "resume", "p", "--backend", "local")

    assert process.returncode == EXIT_CODES[wish]
    assert (meanwhile["state"], meanwhile["session"]["backend"]) == ("running", "fleet")
    assert (ended["state"], ended["session"]["stopped"], ended["left"]) == ("stopped", _reason(wish), 3)
    assert resumed.code == 0, resumed


async def _ended_by(shell: Shell, process: Running, wish: int) -> None:
    """Stop the command, and wait until it has ended."""
    async with asyncio.timeout(PROMPTLY_SECONDS):
        if wish == CANCEL:
            cancelled = await shell.fullsend("plan", "cancel", "p")
            assert cancelled.code == 0, cancelled
        else:
            process.send_signal(wish)
        await process.communicate()


def _reason(wish: int) -> str:
    return "interrupted" if wish else "cancelled by `fullsend plan cancel`"


async def _status(shell: Shell) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((await shell.fullsend("plan", "status", "p", "--json")).out)
    return found


async def _is_there(path: Path) -> bool:
    return path.exists()


@contextlib.asynccontextmanager
async def _silent_redis() -> AsyncIterator[tuple[str, asyncio.Event]]:
    """A server that never answers; its URL, and an event that is set at the first connection."""
    called, over = asyncio.Event(), asyncio.Event()

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        called.set()
        await over.wait()
        writer.close()

    async with await asyncio.start_server(hear, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        try:
            yield f"redis://{host}:{port}/0", called
        finally:
            over.set()
