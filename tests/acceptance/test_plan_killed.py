"""A planner that is killed ten times: the resumed plan has the results of an undisturbed one."""

import asyncio
import json
import os
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
from services.planner.plan.status import PlanState
from tests.acceptance.commands import Shell, family, survivors

CASES = 500
KILLS = 10
MOST_RESULTS = 30
"""The most results between two kills, so that cases are left for the last session."""
MOST_SECONDS = 0.05
REPORT_SECONDS = 0.4
"""The most seconds after the last case; the report takes longer, as drawing is slow to import."""
LOOK_SECONDS = 0.005
TIMES = ["started_at", "finished_at", "seconds", "core_seconds", "gpu_seconds", "peak_rss_bytes", "money"]

TOOL = """
import json, os
from shared import toolkit

def sample(n, group):
    seed = toolkit.run.seed
    toolkit.artifact("small.json", json.dumps([n, seed % 1_000]).encode())
    if n % 10 == 3:
        toolkit.artifact("large.txt", str(seed).encode() * 5_000)
    if group == "dies":
        os._exit(3)
    if group == "nonsense":
        return object()
    if group == "unreachable":
        raise ConnectionError("nobody is there")
    if seed % 20 == 7:
        raise ValueError(f"no, not {seed}")
    return {"seed": seed, "share": seed % 1_000 / n, "text": "x" * (100_000 if n == 5 else 10)}

def aggregate(replicates, target_data):
    found = [json.loads(toolkit.read_artifact(one["artifacts"]["small.json"]))[1] for one in replicates]
    sizes = [
        len(toolkit.read_artifact(one["artifacts"]["large.txt"]))
        for one in replicates
        if "large.txt" in one["artifacts"]
    ]
    toolkit.artifact("found.json", json.dumps(found).encode())
    mean = sum(found) / len(found)
    return {"loss": abs(mean - target_data), "diagnostics": {"mean": mean}, "outputs": {"sizes": sizes}}
"""
# So fast that many cases are between two kills, so slow that ten of them fit in.
MANIFEST = {
    "workflow_id": "killed",
    "tool": "sample",
    "cases": [
        {"parameters": {"n": 1, "group": "dies"}, "replicates": 2},
        {"parameters": {"n": 1, "group": "nonsense"}, "replicates": 3},
        {"parameters": {"n": 1, "group": "unreachable"}, "replicates": 5},
    ],
    "sweep": {"dimensions": {"n": list(range(1, 50)), "group": ["a", "b"]}, "replicates": 5},
    "execution_policy": {
        "concurrency": 4,
        "rate_control": {"per_minute": 12_000, "burst": 4},
        "retry_policy": {"max_attempts": 2, "backoff_seconds": 0.05},
    },
    "evaluator": {
        "target_data": 500,
        "on_failed": "skip",
        "success_criteria": ["loss < 0"],
        "failure_criteria": [
            "failure_rate > 90% after 100",
            "diagnostics.unknown > 1",
            "result.share == 'x'",
        ],
    },
}


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A directory with the tool and the manifest, and no Redis anywhere."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "sample.py").write_text(textwrap.dedent(TOOL))
    (tmp_path / "plan.json").write_text(json.dumps(MANIFEST))
    return Shell(tmp_path, {})


@pytest.fixture
def dice() -> random.Random:
    """Other ones in each test run; `FULLSEND_TEST_SEED` throws the same again."""
    seed = os.environ.get("FULLSEND_TEST_SEED") or str(random.randrange(2**32))
    print(f"FULLSEND_TEST_SEED={seed}")  # shown if the test fails
    return random.Random(seed)


@pytest.mark.timeout(300)
async def test_a_plan_killed_ten_times_comes_to_the_same_as_an_undisturbed_one(
    shell: Shell, dice: random.Random
) -> None:
    killed, undisturbed = shell.directory / "killed", shell.directory / "undisturbed"

    leaving = await _killed(shell, killed, dice)
    await shell.fullsend("plan", "run", "plan.json", "--directory", str(undisturbed))

    assert len(_rows(killed, "SELECT * FROM executions WHERE stopped LIKE '%gone%'")) == KILLS
    assert len(_seeds(killed)) == CASES
    assert _begun_in_vain(killed, leaving) == []
    assert (killed / "manifest.json").read_bytes() == (undisturbed / "manifest.json").read_bytes()
    assert _seeds(killed) == _seeds(undisturbed)
    assert _report(killed) == _report(undisturbed)
    assert _blobs(killed) == _blobs(undisturbed)
    _check_that_there_is_some_of_everything(undisturbed)


# -- killing --------------------------------------------------------------------------


async def _killed(shell: Shell, plan: Path, dice: random.Random) -> list[int]:
    """Execute the plan with ten kills; return the numbers of the sessions with `--no-failed`."""
    leaving, command = list[int](), ["run", "plan.json", "--directory", str(plan)]
    for number in range(1, KILLS + 1):
        if number < KILLS:
            when, seconds = f"{dice.randrange(MOST_RESULTS)} <= {_ENDED}", dice.uniform(0, MOST_SECONDS)
        else:  # while the report is being written
            when, seconds = f"cases = {_ENDED}", dice.uniform(0, REPORT_SECONDS)
        await _kill(shell, command, plan, f"execution_id = {number} AND {when}", seconds)
        assert Plan.open(plan).status().state is PlanState.STALE
        failed = dice.choice(["--failed", "--no-failed"])
        leaving += [number + 1] if failed == "--no-failed" else []
        command = ["resume", str(plan), failed]
    done = await shell.fullsend("plan", *command, "--json")
    assert (done.code, json.loads(done.out)["state"]) == (1, "failed"), done  # as some cases did
    return leaving


_ENDED = (
    "(SELECT count(*) FROM runs WHERE runs.execution_id = executions.execution_id "
    "AND runs.status NOT IN ('running', 'retried'))"
)
"""The number of cases that have ended in the session."""


async def _kill(shell: Shell, command: list[str], plan: Path, when: str, seconds: float) -> None:
    """Kill the command `seconds` after `when` is true of its session; wait for the end of its processes."""
    query = f"SELECT {when} FROM executions ORDER BY execution_id DESC LIMIT 1"
    async with shell.called("plan", *command) as process:
        while not (plan.exists() and _rows(plan, query) == [(True,)]):
            assert process.returncode is None, await process.communicate()
            await asyncio.sleep(LOOK_SECONDS)
        await asyncio.sleep(seconds)  # a random moment
        assert process.returncode is None, await process.communicate()
        below = family(process.pid)
        process.kill()
        await process.communicate()
    while survivors(below):
        await asyncio.sleep(LOOK_SECONDS)


# -- looking --------------------------------------------------------------------------


def _rows(plan: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(plan / "registry.sqlite", timeout=30)) as file:
        return file.execute(query).fetchall()


def _begun_in_vain(plan: Path, leaving: list[int]) -> list[Any]:
    """Attempts at cases that had succeeded, or had failed and were to be left."""
    left = ", ".join(map(str, leaving)) or "0"
    return _rows(
        plan,
        "SELECT later.* FROM runs later JOIN runs sooner ON sooner.run = (SELECT max(run) FROM runs "
        "WHERE case_index = later.case_index AND run < later.run AND status <> 'retried') "
        "WHERE sooner.status = 'succeeded' "
        f"OR (sooner.result IS NOT NULL AND later.execution_id IN ({left}))",
    )


def _seeds(plan: Path) -> list[Any]:
    """Of each case, all that any of its runs had."""
    return _rows(
        plan,
        "SELECT case_index, group_concat(DISTINCT json_extract(result, '$.execution.seed')) FROM runs "
        "WHERE result IS NOT NULL GROUP BY case_index",
    )


def _report(plan: Path) -> dict[str, Any]:
    """All that the report says but for times."""
    folder = plan / "report"
    lines = (folder / "cases.csv").read_text().splitlines()
    assert lines[0].endswith("," + ",".join(TIMES))
    members = json.loads((folder / "report.json").read_text())
    members.pop("times")
    page = (folder / "report.html").read_text()
    return {
        "cases.csv": [line.rsplit(",", len(TIMES))[0] for line in lines],
        "cases.parquet": pyarrow.parquet.read_table(folder / "cases.parquet").drop_columns(TIMES),
        "report.json": json.dumps(members),
        "report.html": re.sub('<section id="times">.*?</section>', "", page, flags=re.DOTALL),
    }


def _blobs(plan: Path) -> dict[str, int]:
    """What the runs kept and is not in the registry itself, with its size."""
    return {path.name: path.stat().st_size for path in (plan / "artifacts" / "sha256").glob("*/*")}


def _check_that_there_is_some_of_everything(plan: Path) -> None:
    """Or the comparison shows less than it promises."""
    report = json.loads((plan / "report" / "report.json").read_text())
    found = report["evaluations"]
    assert set(report["statistics"]["by_status"]) == {"succeeded", "failed", "error"}
    assert report["statistics"]["attempts"] > CASES
    assert len(report["warnings"]) >= 3
    assert any(one["error"] for one in found)
    assert any(one["n"] < len(one["cases"]) for one in found if not one["error"])
    assert any(one["outputs"]["sizes"] for one in found if not one["error"])
    assert len(report["artifacts"]) == CASES
    assert len(_blobs(plan)) > CASES / 10
