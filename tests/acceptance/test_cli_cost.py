"""What plans cost: estimates with a pilot, budgets of money, and what was used, at the command line."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.commands import Shell

TOOL = """
import time
from pathlib import Path

def work(n, marks, seconds=0.0):
    time.sleep(seconds)
    with open(marks, "a") as file:
        file.write(f"{n}\\n")
    return {"n": n, "cost": 0.5}

def aggregate(replicates, target_data):
    return {"loss": 1}
"""


@pytest.fixture
def here(tmp_path: Path) -> Shell:
    """A directory with a tool and prices: a core second is 1 USD."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "work.py").write_text(TOOL)
    return Shell(tmp_path, {"CORE_HOUR_PRICE": "3600"})


def write(shell: Shell, cases: int, seconds: float = 0.0, **members: Any) -> None:
    """Write a manifest of so many cases to `plan.yaml`."""
    parameters = {"marks": str(shell.directory / "marks"), "seconds": seconds}
    manifest = {
        "workflow_id": "my plan",
        "tool": "work",
        "sweep": {"dimensions": {"n": list(range(cases))}, "parameters": parameters},
        **members,
    }
    (shell.directory / "plan.yaml").write_text(json.dumps(manifest))


def begun(shell: Shell) -> list[int]:
    """The numbers of the runs that there were."""
    return [int(line) for line in (shell.directory / "marks").read_text().split()]


async def status(shell: Shell, *arguments: str) -> dict[str, Any]:
    """The output of `plan status --json`."""
    found: dict[str, Any] = json.loads((await shell.fullsend("plan", "status", *arguments, "--json")).out)
    return found


async def test_a_pilot_is_run_once_and_gives_an_estimate_with_money(here: Shell) -> None:
    write(here, 6, evaluator={})

    estimated = await here.fullsend(
        "plan", "run", "plan.yaml", "--directory", "p", "--estimate", "--pilot", "2"
    )
    piloted, between = begun(here), await status(here, "p")
    resumed = await here.fullsend("plan", "resume", "p")
    after, cases = await status(here, "p", "--cases"), await here.fullsend("plan", "status", "p", "--cases")

    assert estimated.code == 0, estimated
    assert estimated.lines[0] == "6 runs of work, 1 at once on local"
    assert estimated.lines[1].endswith("from 2 runs of the pilot")
    assert " included" in estimated.lines[2]
    assert estimated.lines[3].startswith("it uses about ")
    assert estimated.lines[4].startswith("it costs about ")
    assert estimated.lines[5] == "prices: the setting CORE_HOUR_PRICE (3600 USD)"
    assert estimated.lines[-1] == "run the other cases with: fullsend plan resume p"
    assert piloted == [1, 4]
    assert (between["state"], between["done"], between["left"]) == ("stopped", 2, 4)
    assert between["session"]["stopped"] == "a pilot of 2 cases"

    assert "evaluated  6 evaluations" in resumed.lines
    assert "tool cost  3, in the unit of the tool" in resumed.lines
    assert [line for line in resumed.lines if line.startswith("cost ")]
    assert sorted(begun(here)) == [0, 1, 2, 3, 4, 5]
    assert (after["state"], after["usage"]["total"]["attempts"], after["usage"]["tool_cost"]) == (
        "completed",
        6,
        3,
    )
    assert after["usage"]["currency"] == "USD"
    assert sum(one["money"] for one in after["usage"]["cases"].values()) == pytest.approx(
        after["usage"]["total"]["money"]
    )
    assert len(after["usage"]["cases"]) == 6
    assert [line.split()[0] for line in cases.lines[-6:]] == ["0", "1", "2", "3", "4", "5"]
    report = json.loads((here.directory / "p" / "report" / "report.json").read_text())
    assert report["times"]["used"]["attempts"] == 6
    assert (report["statistics"]["evaluations"], report["statistics"]["tool_cost"]) == (6, 3)


async def test_a_budget_of_money_stops_a_plan_before_it_is_exceeded(here: Shell) -> None:
    write(here, 25, 0.1)
    run = ("plan", "run", "plan.yaml", "--budget", "max_money=2.5")

    without = await here.with_variables(CORE_HOUR_PRICE="0").fullsend(*run, "--directory", "q")
    stopped = await here.fullsend(*run, "--directory", "p")
    used, ended = (await status(here, "p"))["usage"]["total"], begun(here)
    resumed = await here.fullsend("plan", "resume", "p", "--budget", "max_money=1_000")

    assert without.err.splitlines()[-1] == (
        "error: the budget has `max_money`, which can't be kept: no price is known for a core on local; "
        "the setting CORE_HOUR_PRICE gives one"
    )
    assert stopped.code == 1
    assert stopped.lines[-1] == "continue with: fullsend plan resume p --budget max_money=N, for a larger N"
    assert 0 < len(ended) < 25
    assert 0 < used["money"] <= 2.5
    assert (resumed.code, sorted(begun(here))) == (0, list(range(25)))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--pilot", "2"), "--pilot is for estimates; add `--estimate`"),
        (
            ("--estimate", "--pilot", "2", "--run-seconds", "1"),
            "--pilot and --run-seconds exclude each other: ",
        ),
        (("--budget", "max_runs"), "--budget 'max_runs': expected NAME=NUMBER; the names are max_runs, "),
        (("--budget", "max_run=3"), "--budget 'max_run=3': expected NAME=NUMBER; the names are max_runs, "),
        (("--budget", "max_money=much"), "--budget 'max_money=much': 'much' is not a number"),
        (("--budget", "max_runs=1.5"), "--budget max_runs=1.5: "),
        (("--budget", "max_money=0"), "--budget max_money=0: input should be greater than 0"),
    ],
)
async def test_options_that_make_no_sense_are_refused(
    here: Shell, arguments: tuple[str, ...], reason: str
) -> None:
    write(here, 1)

    refused = await here.fullsend("plan", "run", "plan.yaml", *arguments)

    assert refused.error.startswith(f"error: {reason}")
    assert not (here.directory / ".fullsend").exists()
