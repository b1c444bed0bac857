"""`fullsend plan run`: exit codes, limits, warnings and estimates."""

import json
from pathlib import Path
from typing import Any

import pytest

from services.planner.plan import Plan
from tests.acceptance.commands import Shell
from tests.conftest import Serve

TOOL = """
import time

def work(n, fail=False, much=0):
    if fail:
        raise ValueError("this one fails")
    return {"n": n, "much": "x" * much}

def aggregate(replicates, target_data):
    loss = sum(one["result"]["n"] for one in replicates)
    if loss >= 4:
        time.sleep(0.3)  # until the last case has surely ended
    return {"loss": loss}
"""


@pytest.fixture
def here(tmp_path: Path) -> Shell:
    """A directory with a tool, without Redis."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "work.py").write_text(TOOL)
    return Shell(tmp_path, {})


def write(shell: Shell, cases: list[dict[str, Any]], **members: Any) -> None:
    """Write a manifest of cases with these parameters to `plan.json`."""
    given = [{"parameters": {"n": number, **one}} for number, one in enumerate(cases)]
    manifest = {"workflow_id": "plan", "tool": "work", "cases": given, **members}
    (shell.directory / "plan.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("criteria", "code", "ended"),
    [
        ({"success_criteria": ["n >= 3"]}, 0, 3),
        ({"success_criteria": ["n >= 5"]}, 0, 5),  # with the last case
        ({"success_criteria": ["loss >= 4"]}, 0, 5),  # after the last case
        ({"success_criteria": ["n > 5"]}, 1, 5),
        ({"failure_criteria": ["n >= 3"]}, 1, 3),
        ({"failure_criteria": ["failed >= 1"], "success_criteria": ["n >= 3"]}, 1, 1),
    ],
)
async def test_a_plan_whose_success_criteria_hold_is_a_success(
    here: Shell, criteria: dict[str, Any], code: int, ended: int
) -> None:
    write(here, [{"fail": True}, {}, {}, {}, {}], evaluator=criteria)

    done = await here.fullsend("plan", "run", "plan.json", "--directory", "p")

    standing = Plan.open(here.directory / "p").status()
    assert done.code == code, done
    assert standing.done + standing.failed == ended
    assert (here.directory / "p" / "report" / "report.html").exists()


async def test_a_successful_plan_is_still_successful_after_a_resume(here: Shell) -> None:
    write(here, [{"fail": True}, {}, {}, {}], evaluator={"success_criteria": ["succeeded >= 2"]})
    await here.fullsend("plan", "run", "plan.json", "--directory", "p")

    again = await here.fullsend("plan", "resume", "p", "--no-failed")

    assert again.code == 0, again
    assert Plan.open(here.directory / "p").status().left == 1


async def test_a_warning_names_results_that_criteria_did_not_see(here: Shell) -> None:
    write(here, [{"much": 100_000}, {"much": 100_000}], evaluator={"failure_criteria": ["result.n > 9"]})

    done = await here.fullsend("plan", "run", "plan.json", "--directory", "p")

    [warning] = [line for line in done.err.splitlines() if "leave out" in line]
    command = warning.partition("`")[2].partition("`")[0].split()
    fetched = await Shell(here.directory / "p", {"ARTIFACTS": "artifacts"}).fullsend(*command[1:], "-o", "-")
    assert warning.startswith("warning: criteria leave out the results of 2 of 2 cases that succeeded")
    assert json.loads(fetched.out)["n"] == 0


async def test_local_warns_if_it_runs_fewer_cases_at_once_than_the_plan_asks_for(here: Shell) -> None:
    write(here, [{}, {}], execution_policy={"concurrency": 500})

    expected = await here.fullsend("plan", "run", "plan.json", "--estimate", "--json")
    done = await here.fullsend("plan", "run", "plan.json")

    told = "the plan asks for 500 cases at once; local runs at most 32"
    assert told in json.loads(expected.out)["notes"]
    assert (done.code, told in done.err.splitlines()) == (0, True)


async def test_unusable_files_and_directories_are_named(here: Shell) -> None:
    write(here, [{}])
    in_file = await here.fullsend("plan", "run", "plan.json", "--directory", "plan.json/p")
    (here.directory / "half.json").write_text('{"workflow_id": "\\ud83d"}')
    half = await here.fullsend("plan", "run", "half.json")

    assert in_file.code == half.code == 1
    assert in_file.error.endswith("plan.json is not a directory; choose another `--directory`")
    assert half.error == (
        "error: half.json member 'workflow_id' has '\\ud83d', half a character, which UTF-8 can't hold; "
        "write the whole character"
    )


async def test_an_estimate_uses_plans_beside_the_given_directory(here: Shell) -> None:
    write(here, [{}, {}, {}])
    await here.fullsend("plan", "run", "plan.json", "--directory", "elsewhere/one")
    without = await here.fullsend("plan", "run", "plan.json", "--estimate")
    within = await here.fullsend("plan", "run", "plan.json", "--estimate", "--directory", "elsewhere/two")

    assert without.lines[1].endswith("no run of work is recorded in plans in .fullsend/plans")
    assert within.lines[1].endswith(
        f"from 3 recorded runs (0 in plans in .fullsend/plans, 3 in plans in {here.directory}/elsewhere)"
    )


async def test_an_estimate_for_the_fleet_uses_runs_in_redis(
    shell: Shell, serve: Serve, tmp_path: Path
) -> None:
    (tmp_path / "tools").mkdir(exist_ok=True)
    (tmp_path / "tools" / "work.py").write_text(TOOL)
    write(shell, [{}, {}])
    async with serve(artifacts=str(tmp_path / ".fullsend" / "artifacts")):
        for place in ("elsewhere/one", ".fullsend/plans/two"):
            await shell.fullsend("plan", "run", "plan.json", "--backend", "fleet", "--directory", place)
        known = await shell.fullsend("plan", "run", "plan.json", "--backend", "fleet", "--estimate")

    assert known.lines[1].endswith("from 4 recorded runs (2 in plans in .fullsend/plans, 2 in Redis)")
