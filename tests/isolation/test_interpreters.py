"""The code of the subprocess under all interpreters that are installed here."""

import os
from pathlib import Path

import pytest

from services.executor.isolation.calls import Died, Level, Partial, Progress, Raised, Returned, TimedOut
from tests.isolation.bench import Bench

VERSIONS = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
SUPPORTED = [
    path / "bin" / "python"
    for path in sorted(VERSIONS.glob("3.*"))
    if tuple(map(int, path.name.split(".")[:2])) >= (3, 9)
]
pytestmark = pytest.mark.skipif(not SUPPORTED, reason="no other interpreters are installed")

SOURCE = """
import asyncio, sys
from typing import List, Optional
from shared import toolkit

class Limited(Exception):
    retryable = True
    retry_after = 5

async def run(what: str, names: Optional[List[str]] = None):
    '''Try everything.

    Args:
        what: Which part.
    '''
    toolkit.progress(1, 2)
    if what == "raise":
        raise Limited("slow down")
    if what == "die":
        import os
        os._exit(9)
    while what == "hang":
        pass
    toolkit.partial({1, 2})
    await asyncio.sleep(0)
    return list(sys.version_info[:2])
"""


@pytest.mark.parametrize("python", SUPPORTED, ids=lambda path: path.parts[-3])
async def test_every_part_works_under_another_interpreter(bench: Bench, python: Path) -> None:
    tool = bench.tool(SOURCE, python=python)
    version = [int(part) for part in python.parts[-3].split(".")[:2]]

    description = await bench.pool.describe(tool, 20)
    returned = [await bench.run(tool, params={"what": ""}, level=level) for level in Level]
    raised = await bench.run(tool, params={"what": "raise"})
    died = await bench.run(tool, params={"what": "die"})
    hung = await bench.run(tool, params={"what": "hang"}, timeout_seconds=0.5)

    assert description.kind == "async"
    assert description.parameters["properties"]["what"] == {"type": "string", "description": "Which part."}
    assert returned == [Returned(version, 2)] * 3
    assert isinstance(raised, Raised)
    assert (raised.error_type, raised.retryable, raised.retry_after_seconds) == ("Limited", True, 5)
    assert raised.traceback.count("  File ") == 1
    assert isinstance(died, Died)
    assert died.exit.exit_code == 9
    assert isinstance(hung, TimedOut)
    assert "in run" in hung.exit.stacks
    assert Progress(1, 2, "") in bench.events
    assert Partial([1, 2], explicit=True) in bench.events


CHILDREN = """
import multiprocessing as mp, os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import shared_memory
from shared import toolkit
import statistics as standard
def work(x):
    toolkit.metric("seen", x)
    return x * x
def run(method):
    found = [standard.mean([1])]
    context = mp.get_context(method)
    with context.Pool(2) as pool: found += pool.map(work, [1, 2])
    with ProcessPoolExecutor(2, mp_context=context) as pool: found += list(pool.map(work, [3]))
    left = shared_memory.SharedMemory(create=True, size=1000)
    return [found, left.name, os.getpid(), hash("text")]
"""


@pytest.mark.parametrize("python", SUPPORTED, ids=lambda path: path.parts[-3])
async def test_what_a_tool_starts_works_under_another_interpreter(bench: Bench, python: Path) -> None:
    tool = bench.tool(CHILDREN, name="statistics", python=python)

    answers = [
        await bench.run(tool, params={"method": method}, seed=1, timeout_seconds=60)
        for method in ("fork", "spawn", "forkserver", "spawn")
    ]

    found = [answer.value for answer in answers if isinstance(answer, Returned)]
    assert [one[0] for one in found] == [[1, 1, 4, 9]] * 4, answers
    assert [Path("/dev/shm", one[1]).exists() for one in found] == [False] * 4
    assert len({one[3] for one in found}) == 1
    assert len([line for line in bench.lines("stderr") if line.startswith("metric seen")]) == 12
