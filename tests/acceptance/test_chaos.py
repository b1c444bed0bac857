"""No run is lost and none is counted twice while everything breaks: `benchmarks.chaos`, in short."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.ports import free_port

ROOT = Path(__file__).parents[2]
RUNS = 240
DEEDS = {"kill": 3, "freeze": 1, "restart": 1, "redis restart": 1, "cut": 3}
PROMISES = (
    "lost",
    "counted twice",
    "due times missed",
    "without a result message",
    "cancelled, but by nobody",
    "started too often",
    "leaked keys",
    "orphan processes",
    "bad exits",
    "open in the end",
)


async def chaos(*arguments: str) -> tuple[int | None, dict[str, Any]]:
    """The exit code of the program, and the figures that it prints."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.chaos", "--json", *arguments),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    return process.returncode, json.loads(out)


@pytest.mark.timeout(300)
async def test_every_promise_is_kept_while_everything_breaks() -> None:
    few = ["--runs", str(RUNS), "--freeze-seconds", "4", "--recovery-limit", "60", "--port", str(free_port())]
    few += [word for deed, count in DEEDS.items() for word in (f"--{deed.replace(' ', '-')}s", str(count))]
    other = os.environ.get("FULLSEND_TEST_SERVER")

    code, figures = await chaos(*few, *(["--server", other] if other else []))

    assert {name: figures[name] for name in PROMISES} == dict.fromkeys(PROMISES, 0)
    assert (code, figures["broken"]) == (0, [])
    assert figures["deeds"] == DEEDS
    assert figures["submitted by cron"] > 0
    ways = ("submitted by PUBLISH", "submitted to the queue", "unsure, as the connection broke")
    assert sum(figures[way] for way in ways) == RUNS
