"""`fullsend sweep ring`."""

import csv
import inspect
import json
import shutil
from pathlib import Path

import pytest

from services.planner.plan import Plan
from tests.acceptance.commands import Shell
from tools import ring_simulation

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


async def test_defaults_are_handled_by_expelling_agents_unless_told_otherwise(here: Shell) -> None:
    given = ("--kappa", "0.5", "--concentration", "1", "--replicates", "1", "--n-agents", "5")
    await here.fullsend("sweep", "ring", *given, "--directory", "p")
    await here.fullsend("sweep", "ring", *given, "--default-handling", "fail-fast", "--directory", "q")

    found = [Plan.open(here.directory / name).results()[0] for name in ("p", "q")]
    assert [one.case.parameters["default_handling"] for one in found] == ["expel-agent", "fail-fast"]
    statuses = [json.loads(one.execution.result or "")["status"] for one in found if one.execution]
    assert statuses == ["quiet", "stopped: default"]


async def test_random_numbers_are_common_along_a_parameter(here: Shell) -> None:
    await here.fullsend(
        "sweep", "ring", "--kappa", "0.5,1", "--concentration", "1,5", "--replicates", "2", "--n-agents", "5",
        "--common-random-numbers", "kappa", "--seed", "9", "--directory", "p",
    )  # fmt: skip

    results = Plan.open(here.directory / "p").results()
    debts = {}
    for one in results:
        assert one.execution is not None
        events = one.execution.loader.load_text(one.execution.artifacts["events.jsonl"]).splitlines()
        debts[one.index] = [event for event in events if '"PayableCreated"' in event]
    assert len({one.case.seed for one in results}) == 4
    assert [debts[index] == debts[index + 4] for index in range(4)] == [True] * 4
    assert debts[0] != debts[1] != debts[2]


async def test_every_parameter_of_the_tool_can_be_given(here: Shell) -> None:
    taken = (await here.fullsend("sweep", "ring", "--help")).out
    signature = inspect.signature(ring_simulation.ring_simulation)

    missing = [name for name in signature.parameters if f"--{name.replace('_', '-')}" not in taken]
    assert missing == []

    done = await here.fullsend(
        "sweep", "ring", "--kappa", "0.5", "--concentration", "1", "--replicates", "1", "--n-agents", "2",
        "--liquidity", "vector", "--liquidity-vector", "1,3", "--total-debt-cents", "1000", "--max-days", "3",
        "--quiet-days", "1", "--check-invariants", "setup", "--show-events", "none",
        "--show-balances", "H1,H2", "--t-account", "--metrics", "none", "--directory", "p",
    )  # fmt: skip
    assert done.code == 0, done
    [result] = Plan.open(here.directory / "p").results()
    assert result.case.parameters["liquidity_vector"] == [1, 3]
    assert "PHI" not in done.lines[0]


async def test_empty_and_repeated_values_are_refused(here: Shell) -> None:
    empty = await here.fullsend("sweep", "ring", "--kappa", ",")
    twice = await here.fullsend("sweep", "ring", "--kappa", "1,1", "--estimate")

    assert empty.error == "error: --kappa ',' has no values; expected a list like 0.5,1,2"
    assert twice.error.startswith("error: ")


async def test_numbers_are_read_as_people_write_them_and_mistakes_run_nothing(here: Shell) -> None:
    good = await here.fullsend(
        "sweep", "ring", "--kappa", ".25,5.,+1,1e-3", "--n-agents", "5", "--replicates", "1",
        "--directory", "p",
    )  # fmt: skip
    wrong = ("--kappa", ".25,much", "--n-agents", "2.5", "--concentration", "1", "--replicates", "3")
    estimated = await here.fullsend("sweep", "ring", *wrong, "--estimate")
    refused = await here.fullsend("sweep", "ring", *wrong, "--directory", "q")

    assert good.code == 0, good
    kappas = [one.parameters["kappa"] for one in Plan.open(here.directory / "p").manifest.cases]
    assert kappas == [0.25] * 3 + [5.0] * 3 + [1] * 3 + [0.001] * 3
    lines = [
        "error: parameter 'n_agents' is 2.5; expected a whole number (6 cases, the first is 0)",
        "error: parameter 'kappa' is \"much\"; expected a number (3 cases, the first is 3)",
    ]
    assert (estimated.code, estimated.err.splitlines()[:2]) == (1, lines)
    assert (refused.code, refused.err.splitlines()[-3:-1]) == (1, lines)
    assert Plan.open(here.directory / "q").registry.history() == []


async def test_two_arms_are_compared_in_pairs_and_balanced_pairs_start_alike(here: Shell) -> None:
    given = ("--concentration", "1", "--replicates", "3", "--n-agents", "8", "--seed", "1")
    compared = await here.fullsend("sweep", "comparison", "--kappa", "0.5,1", *given, "--directory", "p")
    arms = ("--parameter", "kappa", "--control", "0.5", "--treatment", "1")
    unequal = await here.fullsend("sweep", "balanced", *arms, *given, "--directory", "q")
    equal = await here.fullsend("plan", "report", "p")
    refused = await here.fullsend("sweep", "balanced", *arms, "--kappa", "0.5")

    assert compared.code == 0, compared
    assert compared.lines[0].split() == [
        "KAPPA", "VALUE", "PAIRS", "CONTROL", "TREATMENT", "DIFFERENCE", "95%", "INTERVAL",
    ]  # fmt: skip
    phi = [line.split() for line in compared.lines if line.split()[1:2] == ["phi"]]
    assert [line[::2][:2] for line in phi] == [["0.5", "3"], ["1", "3"], ["all", "6"]]
    results = Plan.open(here.directory / "p").results()
    assert len({one.case.seed for one in results}) == 6
    with (here.directory / "p" / "report" / "comparison.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["value"] == "metric.phi"]
    assert [(row["over"], row["param.kappa"], row["pairs"]) for row in rows] == [
        ("replicates", "0.5", "3"), ("replicates", "1", "3"), ("all", "", "6"),
    ]  # fmt: skip
    assert all(float(row["low"]) <= float(row["difference"]) <= float(row["high"]) for row in rows)
    assert "comparison_pairs.csv" in equal.out
    assert "3 of 3 pairs are left out of the comparison; the first: cases " in unequal.err
    assert refused.error == "error: --kappa is compared: its values are those of --control and --treatment"
