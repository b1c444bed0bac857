"""The kernel's OOM killer, in a control group that is too small for a tool."""

import asyncio
import contextlib
import hashlib
import json
import os
import secrets
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.executor.isolation import resource_limits
from tests.isolation.workshop import ROOT

LIMIT_BYTES = 200_000_000
HUNGRY = """
import os, signal

def hungry(megabytes=0, kill=False):
    if kill: os.kill(os.getpid(), signal.SIGKILL)
    held = bytearray(megabytes * 1_000_000)
    held[::4096] = b"1" * len(held[::4096])
    return len(held)
"""
SERVICE = """
import asyncio, json, pathlib, sys
from services.executor.isolation.calls import Call, Level, Module
from services.executor.isolation.pool import Pool

async def main(group, path, digest, level, *runs):
    pathlib.Path(group, "cgroup.procs").write_text("0")
    pool = Pool(capacity=2)
    await pool.start()
    tool = Module("hungry", pathlib.Path(path), digest)
    for params in map(json.loads, runs):
        answer = await pool.call(Call(tool, "r", "e", 1, params, 60.0, Level(level)), lambda _: None)
        exit_ = getattr(answer, "exit", None)
        print(json.dumps([exit_.signal, exit_.oom_killed, answer.reason] if exit_ else []))
    await pool.stop()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of `LIMIT_BYTES` without swap; the test is skipped where none can be made."""
    try:
        made = _make_group()
    except OSError as error:
        pytest.skip(f"no control group can be made here to run out of memory in: {error}")
    try:
        yield made
    finally:
        made.rmdir()


def _make_group() -> Path:
    counter = resource_limits.counter_file()
    if counter == resource_limits.MACHINE_COUNTER:
        raise OSError("this process has no control group of its own")
    own = counter.parent
    is_first_version = counter.name == "memory.oom_control"
    # In version 2, groups that have processes can't have groups below them.
    made = (own if is_first_version else own.parent) / f"fullsend-test-{secrets.token_hex(4)}"
    made.mkdir()
    limit, swap = (
        ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
        if is_first_version
        else ("memory.max", "memory.swap.max")
    )
    try:
        (made / limit).write_text(str(LIMIT_BYTES))
        with contextlib.suppress(OSError):  # a kernel that doesn't count swap
            (made / swap).write_text(str(LIMIT_BYTES if is_first_version else 0))
    except OSError:
        made.rmdir()
        raise
    return made


async def deaths(group: Path, directory: Path, level: str, *runs: dict[str, Any]) -> list[list[Any]]:
    """What a service in the group says of each run of the hungry tool: signal, OOM killer, reason."""
    path = directory / "hungry.py"
    path.write_text(textwrap.dedent(HUNGRY))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    arguments = [str(group), str(path), digest, level, *map(json.dumps, runs)]
    service = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVICE, *arguments,
        stdout=asyncio.subprocess.PIPE, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    output, _ = await service.communicate()
    return [json.loads(line) for line in output.splitlines()]


@pytest.mark.parametrize("level", ["warm", "fork", "spawn"])
async def test_a_run_that_the_oom_killer_ends_is_marked(group: Path, tmp_path: Path, level: str) -> None:
    first, second, third = await deaths(
        group, tmp_path, level, {"megabytes": 400}, {"kill": True}, {"megabytes": 1}
    )

    assert first[:2] == ["SIGKILL", True]
    assert "memory had run out" in first[2]
    assert second == ["SIGKILL", False, "its process was ended by SIGKILL"]
    assert third == []
