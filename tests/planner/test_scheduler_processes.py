"""The processes of real tools are gone when their plan or their time limit has ended."""

import asyncio
import time
from pathlib import Path
from typing import Any

from services.planner.cancellation import CancellationToken
from services.planner.scheduler import TaskScheduler
from services.planner.tasks import RunExecutionResult, Task
from tests.planner.conftest import MakeLaboratory
from tests.planner.scripted import (
    PROMPT_SECONDS,
    Recorded,
    execute,
    plan,
    states,
)

TELLING = """
import os, time

def tool(n):
    print(os.getpid(), flush=True)
    time.sleep(600)
"""


async def test_cancelling_ends_the_processes_of_real_tools(laboratory: MakeLaboratory) -> None:
    lab = await laboratory()
    lab.tool("tool", TELLING)
    token, listener = CancellationToken(), Said(2)
    scheduler = TaskScheduler(lab.backend, listener=listener)
    execution = asyncio.create_task(scheduler.run_manifest_async(plan(5, concurrency=2), token))
    await listener.all_have_said(execution)
    started = time.monotonic()

    token.cancel()
    found = await execution

    assert time.monotonic() - started < PROMPT_SECONDS
    assert states(found) == ["cancelled"] * 5
    assert lab.runtime.pool.counts()["busy"] == 0
    assert len(listener.pids) == 2
    assert not [pid for pid in listener.pids if _is_alive(pid)]


async def test_a_real_tool_past_its_time_limit_is_gone_within_a_second(laboratory: MakeLaboratory) -> None:
    lab = await laboratory()
    lab.tool("tool", TELLING)
    listener = Said(3)
    manifest = plan(3, stop_conditions={"timeout_per_task": 0.2})

    found = await execute(lab.backend, manifest, listener=listener)

    assert (states(found), found.stopped) == (["timeout"] * 3, None)
    # The best of three: the machine has other things to do.
    assert min(one.execution_time for one in found.task_results) < 1
    assert listener.pids
    assert not [pid for pid in listener.pids if _is_alive(pid)]


class Said(Recorded):
    """Collects the process ids that tools print."""

    def __init__(self, expected: int) -> None:
        super().__init__()
        self.pids: list[int] = []
        self._all_said = asyncio.Event()
        self._expected = expected

    def on_event(self, task: Task, event: Any) -> None:
        """Note the process id; stacks that are printed at the end are none."""
        if event.text.strip().isdecimal():
            self.pids.append(int(event.text))
        if len(self.pids) == self._expected:
            self._all_said.set()

    async def all_have_said(self, execution: asyncio.Task[RunExecutionResult]) -> None:
        """Wait for as many as are expected; fails at once if the execution ends before."""
        waiting = asyncio.create_task(self._all_said.wait())
        await asyncio.wait({waiting, execution}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        assert not execution.done(), execution.result().task_results


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
