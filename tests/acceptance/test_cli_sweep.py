"""`fullsend sweep ring`."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from services.planner.plan import Plan
from tests.acceptance.commands import Shell

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def here(tmp_path: Path) -> Shell:
    """A directory with the tool, without Redis."""
    (tmp_path / "tools").mkdir()
    shutil.copy(TOOLS / "ring_simulation.py", tmp_path / "tools")
    return Shell(tmp_path, {})


async def test_a_sweep_prints_its_results_and_is_a_plan(here: Shell) -> None:
    done = await here.fullsend(
        "sweep", "ring", "--kappa", "0.25,2", "--concentration", "1,5", "--replicates", "2",
        "--n-agents", "10", "--directory", "p",
    )  # fmt: skip

    assert done.code == 0, done
    assert done.lines[0].split()[:8] == [
        "KAPPA", "CONCENTRATION", "RUNS", "SETTLED", "DEFAULTS", "PAID", "PHI", "DELTA",
    ]  # fmt: skip
    assert [line.split()[:3] for line in done.lines[1:5]] == [
        ["0.25", "1", "2/2"], ["0.25", "5", "2/2"], ["2", "1", "2/2"], ["2", "5", "2/2"],
    ]  # fmt: skip
    assert done.lines[-1].startswith("report     p/report/report.html")
    plan = Plan.open(here.directory / "p")
    assert [one.replicate for one in plan.manifest.cases] == [0, 1] * 4
    assert {one.parameters["n_agents"] for one in plan.manifest.cases} == {10}
    with (plan.report_directory / "cases.csv").open() as file:
        assert [row["param.kappa"] for row in csv.DictReader(file)] == ["0.25"] * 4 + ["2"] * 4


async def test_three_values_by_four_values_by_five_replicates_are_sixty_runs(here: Shell) -> None:
    done = await here.fullsend(
        "sweep", "ring", "--kappa", "0.25,0.5,1,2", "--concentration", "0.2,1,5", "--replicates", "5",
        "--estimate", "--json",
    )  # fmt: skip

    assert json.loads(done.out)["cases"] == 60


async def test_empty_and_repeated_values_are_refused(here: Shell) -> None:
    empty = await here.fullsend("sweep", "ring", "--kappa", ",")
    twice = await here.fullsend("sweep", "ring", "--kappa", "1,1", "--estimate")

    assert empty.error == "error: --kappa ',' has no values; expected a list like 0.5,1,2"
    assert twice.error.startswith("error: ")
