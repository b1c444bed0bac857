"""A planner that is killed again and again: resuming gives what an undisturbed plan gives."""

import asyncio
import csv
import json
import random
import re
import sqlite3
import textwrap
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from services.planner.plan import Plan
from services.planner.standing import PlanState
from tests.acceptance.commands import FULLSEND, Shell, family, survivors

CASES = 500
KILLS = 10
LOOK_SECONDS = 0.005
TIMES = ["started_at", "finished_at", "seconds"]

TOOL = """
from shared import toolkit
def nothing(n, group):
    return {"n": n, "seed": toolkit.run.seed}
"""
# So fast that hundreds of cases are between two kills, so slow that ten of them fit in.
MANIFEST = {
    "workflow_id": "killed",
    "tool": "nothing",
    "sweep": {"dimensions": {"n": list(range(CASES // 4)), "group": ["a", "b"]}, "replicates": 2},
    "execution_policy": {"concurrency": 4, "rate_control": {"per_minute": 12_000, "burst": 4}},
}


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A directory with the tool and the manifest, and no Redis anywhere."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "nothing.py").write_text(textwrap.dedent(TOOL))
    (tmp_path / "plan.json").write_text(json.dumps(MANIFEST))
    return Shell(tmp_path, {})


async def test_a_plan_killed_ten_times_comes_to_the_same_as_an_undisturbed_one(shell: Shell) -> None:
    targets = sorted(random.sample(range(1, 420), KILLS))
    print("killed at", targets)
    killed, undisturbed = shell.directory / "killed", shell.directory / "undisturbed"

    await _run_and_kill(shell, targets[0], "run", "plan.json", "--directory", str(killed))
    for target in targets[1:]:
        assert Plan.open(killed).standing().state is PlanState.STALE
        await _run_and_kill(shell, target, "resume", str(killed))
    done = await shell.fullsend("plan", "resume", str(killed), "--json")
    await shell.fullsend("plan", "run", "plan.json", "--directory", str(undisturbed))

    assert done.code == 0, done
    assert json.loads(done.out)["state"] == "completed"
    assert len(_rows(killed, "SELECT * FROM executions WHERE stopped LIKE '%gone%'")) == KILLS
    finished = _rows(killed, "SELECT case_index, count(*) FROM runs WHERE status = 'succeeded' GROUP BY 1")
    assert finished == [(index, 1) for index in range(CASES)]
    assert set(_rows(killed, "SELECT DISTINCT status FROM runs")) <= {("succeeded",), ("lost",)}
    assert (killed / "manifest.json").read_bytes() == (undisturbed / "manifest.json").read_bytes()
    assert _seeds(killed) == _seeds(undisturbed)
    assert _report(killed) == _report(undisturbed)


async def _run_and_kill(shell: Shell, target: int, *arguments: str) -> None:
    """Kill the command as soon as the registry has so many finished cases, at least one more than before."""
    target = max(target, _finished(shell.directory / "killed") + 1)
    async with shell.started(str(FULLSEND), "plan", *arguments) as process:
        while _finished(shell.directory / "killed") < target:
            assert process.returncode is None, await process.communicate()
            await asyncio.sleep(LOOK_SECONDS)
        below = family(process.pid)
        process.kill()
        await process.communicate()
    while survivors(below):
        await asyncio.sleep(LOOK_SECONDS)


def _finished(plan: Path) -> int:
    if not plan.exists():
        return -1
    [(count,)] = _rows(plan, "SELECT count(*) FROM runs WHERE status = 'succeeded'")
    return int(count)


def _rows(plan: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(plan / "registry.sqlite", timeout=30)) as file:
        return file.execute(query).fetchall()


def _seeds(plan: Path) -> list[int]:
    """What each case's tool says its seed was, in the order of the cases."""
    rows = _rows(plan, "SELECT result FROM runs WHERE status = 'succeeded' ORDER BY case_index")
    return [json.loads(json.loads(result)["execution"]["result"])["seed"] for (result,) in rows]


def _report(plan: Path) -> dict[str, Any]:
    """All that the report says but for times."""
    folder = plan / "report"
    with (folder / "cases.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    clocks = len(TIMES)
    assert rows[0][-clocks:] == TIMES
    members = json.loads((folder / "report.json").read_text())
    members.pop("times")
    page = (folder / "report.html").read_text()
    return {
        "cases.csv": [row[:-clocks] for row in rows],
        "cases.parquet": pyarrow.parquet.read_table(folder / "cases.parquet").drop_columns(TIMES),
        "report.json": json.dumps(members),
        "report.html": re.sub('<section id="times">.*?</section>', "", page, flags=re.DOTALL),
    }
