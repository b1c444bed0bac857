"""`fullsend plan`: run, status, cancel, resume, report."""

import asyncio
import json
import re
import shutil
import signal
import textwrap
from pathlib import Path
from typing import Any

import pytest

from services.executor.store import Store
from services.planner.plan import Plan
from tests.acceptance.commands import Shell, family, survivors
from tests.conftest import Serve, eventually

TOOL = """
import signal
import time
from pathlib import Path
from shared import toolkit

def work(n, wait="", fail_if="", is_deaf=False):
    if is_deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if wait and n > 0:
        Path(f"{wait}.{n}").touch()
        while not Path(wait).exists():
            time.sleep(0.01)
    if fail_if and n == 2 and Path(fail_if).exists():
        raise ValueError("two is too many")
    toolkit.artifact("square.txt", str(n * n).encode() * 100_000)
    return {"n": n, "seed": toolkit.run.seed}

def aggregate(replicates, target_data):
    return {"loss": sum(one["result"]["n"] for one in replicates)}
"""


@pytest.fixture
def here(tmp_path: Path) -> Shell:
    """A directory with a tool, without Redis."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "work.py").write_text(TOOL)
    return Shell(tmp_path, {})


def write(shell: Shell, cases: int = 4, **members: Any) -> None:
    """Write a manifest of so many cases to `plan.yaml`."""
    given = members.pop("parameters", {})
    listed = [{"parameters": {"n": number, **given}} for number in range(cases)]
    manifest = {
        "workflow_id": "my plan",
        "tool": "work",
        "cases": members.pop("cases_given", listed),
        "execution_policy": {"concurrency": 2},
        **members,
    }
    (shell.directory / "plan.yaml").write_text(json.dumps(manifest))


async def status(shell: Shell, plan: str) -> dict[str, Any]:
    """The output of `plan status --json`."""
    found: dict[str, Any] = json.loads((await shell.fullsend("plan", "status", plan, "--json")).out)
    return found


async def test_a_plan_runs_and_names_its_report(here: Shell) -> None:
    write(here, evaluator={})

    done = await here.fullsend("plan", "run", "plan.yaml")

    assert done.code == 0, done
    said = dict(line.split(maxsplit=1) for line in done.lines)
    assert re.fullmatch(r"my-plan-\d{8}-\d{6}-[0-9a-f]{4}", said["plan"])
    assert (said["state"], said["cases"]) == ("completed", "4 of 4 done, 0 failed")
    assert said["directory"] == f".fullsend/plans/{said['plan']}"
    report = here.directory / said["directory"] / "report"
    names = {"cases.csv", "cases.parquet", "report.json", "report.html"}
    assert {path.name for path in report.iterdir()} == names
    assert [one["loss"] for one in json.loads((report / "report.json").read_text())["evaluations"]] == [
        0,
        1,
        2,
        3,
    ]
    # A plan that took half a second has a rate as well; how long it takes is up to the machine.
    last = re.escape(f"{said['plan']}: 4 of 4 done, 0 failed, 0 running")
    assert re.fullmatch(last + r"(, \d+\.\d a (second|minute))?", done.err.splitlines()[-1])


async def test_failed_cases_are_reported_and_run_again_with_their_seeds(here: Shell) -> None:
    write(here, parameters={"fail_if": str(here.directory / "stumble")})
    (here.directory / "stumble").touch()

    failed = await here.fullsend("plan", "run", "plan.yaml", "--directory", "p")
    kept = await here.fullsend("plan", "resume", "p", "--no-failed", "--json")
    (here.directory / "stumble").unlink()
    done = await here.fullsend("plan", "resume", "p", "--json")

    assert failed.code == 1
    assert failed.lines[0] == "case 2 failed: ValueError: two is too many"
    assert (kept.code, json.loads(kept.out)["failed"]) == (1, 1)
    assert (done.code, json.loads(done.out)["state"]) == (0, "completed")
    history = Plan.open(here.directory / "p").registry.history()
    assert [(one.index, one.task_status) for one in history if one.index == 2] == [
        (2, "failed"),
        (2, "succeeded"),
    ]
    assert len(history) == 5
    assert len({one.case.seed for one in history if one.index == 2}) == 1


async def test_a_plan_is_cancelled_from_another_process_and_resumed_later(here: Shell) -> None:
    gate = here.directory / "gate"
    write(here, cases=6, parameters={"wait": str(gate)})

    async with here.called("plan", "run", "plan.yaml", "--directory", "p") as process:
        await eventually(lambda: _exist(here, "gate.1", "gate.2"), "both cases under way")
        second = await here.fullsend("plan", "resume", "p")
        meanwhile = await status(here, "p")
        below = family(process.pid)
        cancelled = await here.fullsend("plan", "cancel", "p")
        out, _ = await process.communicate()
    again = await here.fullsend("plan", "cancel", "p")
    gate.touch()
    done = await here.fullsend("plan", "resume", "p", "--json")

    assert second.err.splitlines()[-1].startswith(f"error: p is being executed by process {process.pid} on ")
    assert (meanwhile["state"], meanwhile["done"], meanwhile["running"]) == ("running", 1, 2)
    assert cancelled.lines == ["p is stopped: 1 of 6 done, 0 failed"]
    assert process.returncode == 1
    assert survivors(below) == []
    assert "stopped    cancelled by `fullsend plan cancel`" in out.decode().splitlines()
    assert "continue with: fullsend plan resume p" in out.decode().splitlines()
    assert again.error == "error: p is not running; its state is stopped"
    assert json.loads(done.out)["done"] == 6


async def test_ctrl_c_stops_a_plan_and_keeps_its_results(here: Shell) -> None:
    write(here, parameters={"wait": str(here.directory / "gate")})

    async with here.called("plan", "run", "plan.yaml", "--directory", "once") as process:
        await eventually(lambda: _exist(here, "gate.1"), "a case under way")
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()

    assert process.returncode == 130, (out, err)
    assert "stopping the running cases; press Ctrl-C again to exit at once" in err.decode()
    assert (await status(here, "once"))["state"] == "stopped"
    assert not (here.directory / "once" / "report").exists()


async def test_a_second_ctrl_c_exits_at_once(here: Shell) -> None:
    write(here, parameters={"wait": str(here.directory / "gate"), "is_deaf": True})

    async with here.called("plan", "run", "plan.yaml", "--directory", "p") as process:
        await eventually(lambda: _exist(here, "gate.1"), "a case under way")
        below = family(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        while b"exit at once" not in await process.stderr.readline():
            pass
        process.send_signal(signal.SIGINT)
        await process.communicate()

    assert process.returncode == 130
    await eventually(lambda: _gone(below), "the end of all processes")
    assert (await status(here, "p"))["state"] == "stale"


async def test_a_killed_plan_is_stale_and_can_be_cancelled(here: Shell) -> None:
    write(here, parameters={"wait": str(here.directory / "gate")})
    async with here.called("plan", "run", "plan.yaml", "--directory", "p") as process:
        await eventually(lambda: _running(here), "a case noted as running")
        process.kill()
    stale = await here.fullsend("plan", "status", "p")
    cancelled = await here.fullsend("plan", "cancel", "p")

    assert "state      stale" in stale.lines
    assert "were running in a process that is gone" in stale.out
    assert cancelled.lines[0].startswith("p is stopped: ")
    assert (await status(here, "p"))["stale"] == 0


async def test_a_moved_plan_is_reported_as_before(here: Shell) -> None:
    write(here, evaluator={})
    await here.fullsend("plan", "run", "plan.yaml", "--directory", "p")
    before = {path.name: path.read_bytes() for path in (here.directory / "p" / "report").iterdir()}
    (here.directory / "p" / "report" / "report.html").unlink()
    (here.directory / "p").rename(here.directory / "q")

    done = await here.fullsend("plan", "report", "q")

    assert done.lines == ["report     q/report/report.html; beside it: cases.csv, cases.parquet, report.json"]
    assert {path.name: path.read_bytes() for path in (here.directory / "q" / "report").iterdir()} == before


async def test_plans_are_listed_and_found_by_the_beginning_of_their_id(here: Shell) -> None:
    write(here)
    await here.fullsend("plan", "run", "plan.yaml")
    listed = await here.fullsend("plan", "status")
    begun = await here.fullsend("plan", "status", "my-pl")
    missing = await here.fullsend("plan", "status", "other")
    plans = here.directory / ".fullsend" / "plans"
    (plans / "broken").mkdir()
    (plans / "broken" / "manifest.json").write_text("{")
    with_broken = await here.fullsend("plan", "status")

    assert listed.lines[0].split() == [
        "PLAN", "STATE", "DONE", "FAILED", "RUNNING", "LEFT", "RATE", "TO", "GO", "BEGUN",
    ]  # fmt: skip
    assert listed.lines[1].split()[1:6] == ["completed", "4/4", "0", "0", "0"]
    assert begun.lines[0].split()[1] == listed.lines[1].split()[0]
    assert missing.error.startswith("error: there is no plan 'other' in .fullsend/plans")
    assert (with_broken.code, len(with_broken.lines)) == (0, 2)
    assert "broken/manifest.json can't be read" in with_broken.err


async def test_an_estimate_comes_from_what_earlier_plans_took(here: Shell) -> None:
    write(here)
    unknown = await here.fullsend("plan", "run", "plan.yaml", "--estimate")
    await here.fullsend("plan", "run", "plan.yaml")
    known = await here.fullsend("plan", "run", "plan.yaml", "--estimate", "--json")

    assert unknown.lines[0] == "4 runs of work, 2 at once on local"
    assert "not known" in unknown.lines[1]
    assert json.loads(known.out)["recorded"] == 4
    assert len(list((here.directory / ".fullsend" / "plans").iterdir())) == 1


async def test_impossible_plans_are_refused_with_the_reason(here: Shell) -> None:
    write(here, tool="nothing", budget={"max_runs": 1})
    no_file = await here.fullsend("plan", "run", "other.yaml")
    no_tool = await here.fullsend("plan", "run", "plan.yaml", "--directory", "p")
    taken = await here.fullsend("plan", "run", "plan.yaml", "--directory", "p")
    no_redis = await here.fullsend("plan", "run", "plan.yaml", "--backend", "fleet")

    assert no_file.error == "error: other.yaml: there is no such file"
    assert "Tool 'nothing' not found" in no_tool.err.splitlines()[-1]
    assert no_tool.err.splitlines()[-1].endswith("then continue with: fullsend plan resume p")
    assert "p is not empty" in taken.error
    assert "error: " in no_redis.err


async def test_a_budget_stops_a_plan_for_good(here: Shell) -> None:
    write(here, cases=20, budget={"max_runs": 3})

    stopped = await here.fullsend("plan", "run", "plan.yaml", "--directory", "p")
    refused = await here.fullsend("plan", "resume", "p")

    assert stopped.code == 1
    reason = "the budget of 3 runs is used up; raise `budget.max_runs` to go on"
    assert f"stopped    {reason}" in stopped.lines
    assert stopped.lines[-1] == "continue with: fullsend plan resume p --budget max_runs=N, for a larger N"
    assert refused.err.splitlines()[-1] == f"error: there is nothing left of the plan's budget: {reason}"

    raised = await here.fullsend("plan", "resume", "p", "--budget", "max_runs=23")
    assert "cases      20 of 20 done, 0 failed" in raised.lines
    assert json.loads((here.directory / "p" / "manifest.json").read_text())["budget"] == {"max_runs": 23}


async def test_the_fleet_gives_the_same_results(shell: Shell, serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir(exist_ok=True)
    (tmp_path / "tools" / "work.py").write_text(textwrap.dedent(TOOL))
    write(shell, evaluator={})
    async with serve(artifacts=str(tmp_path / ".fullsend" / "artifacts")):
        fleet = await shell.fullsend("plan", "run", "plan.yaml", "--backend", "fleet", "--directory", "f")
        expected = await shell.fullsend("plan", "run", "plan.yaml", "--backend", "fleet", "--estimate")
    local = await shell.fullsend("plan", "run", "plan.yaml", "--directory", "l")

    assert (fleet.code, local.code) == (0, 0), fleet
    assert expected.lines[0] == "4 runs of work, 2 at once on fleet"
    one, other = (Plan.open(tmp_path / name).results() for name in "fl")
    assert [_content(result) for result in one] == [_content(result) for result in other]


async def test_a_planner_killed_on_the_fleet_leaves_nothing_that_runs_twice(
    shell: Shell, serve: Serve, store: Store, tmp_path: Path
) -> None:
    (tmp_path / "tools").mkdir(exist_ok=True)
    (tmp_path / "tools" / "work.py").write_text(TOOL)
    write(shell, parameters={"wait": str(tmp_path / "gate")})
    async with serve(artifacts=str(tmp_path / ".fullsend" / "artifacts")):
        command = ("plan", "run", "plan.yaml", "--backend", "fleet", "--directory", "p")
        async with shell.called(*command) as process:
            await eventually(lambda: _exist(shell, "gate.1", "gate.2"), "both cases under way")
            second = await shell.fullsend("plan", "resume", "p")
            process.kill()
        plan = Plan.open(tmp_path / "p")
        left = await store.submissions.open_runs(f"plan:{plan.name}")
        async with shell.called("plan", "resume", "p", "--json") as process:
            await eventually(lambda: _are_over(store, left), "the end of the runs left behind")
            (tmp_path / "gate").touch()
            out, err = await process.communicate()

        assert "error: p is being executed by process" in second.err
        assert process.returncode == 0, err
        assert len(left) == 2
        assert [await store.history.status(one) for one in left] == ["cancelled"] * 2
        assert (json.loads(out)["state"], json.loads(out)["session"]["backend"]) == ("completed", "fleet")
        assert await store.submissions.open_runs(f"plan:{plan.name}") == []


async def _are_over(store: Store, run_ids: list[str]) -> bool:
    return all([await store.history.status(one) == "cancelled" for one in run_ids])


def _content(result: Any) -> tuple[Any, ...]:
    execution = result.execution
    return execution.result, execution.seed, execution.run_digest, execution.artifacts


async def _exist(shell: Shell, *names: str) -> bool:
    return all((shell.directory / name).exists() for name in names)


async def _gone(processes: set[tuple[int, str]]) -> bool:
    return not survivors(processes)


async def _running(shell: Shell) -> bool:
    place = shell.directory / "p"
    return place.exists() and await asyncio.to_thread(lambda: Plan.open(place).status().running > 0)


async def test_metrics_are_computed_with_the_report_and_again_later(here: Shell) -> None:
    shutil.copy(Path(__file__).parents[2] / "tools" / "ring_simulation.py", here.directory / "tools")
    cases = [{"parameters": {"n_agents": 300, "kappa": kappa}} for kappa in (0.5, 1)]
    write(here, tool="ring_simulation", cases_given=cases, metrics="ring")

    done = await here.fullsend("plan", "run", "plan.yaml", "--directory", "p")
    report = here.directory / "p" / "report"
    first = {path.name: path.read_bytes() for path in report.glob("metrics*.csv")}
    again = await here.fullsend("plan", "metrics", "p", "--json")
    (here.directory / "p" / "artifacts").rename(here.directory / "elsewhere")
    moved = await here.fullsend("plan", "metrics", "p", "--store", "elsewhere", "--directory", "out")
    without = await here.fullsend("plan", "metrics", "p")

    assert (done.code, again.code, moved.code, without.code) == (0, 0, 0, 1)
    assert first.keys() == {
        "metrics.csv", "metrics_days.csv", "metrics_debtor_shares.csv", "metrics_intraday.csv",
    }  # fmt: skip
    assert {path.name: path.read_bytes() for path in (here.directory / "out").iterdir()} == first
    assert [one["parameters"]["kappa"] for one in json.loads(again.out)["cases"]] == [0.5, 1]
    assert moved.lines[0].split()[:4] == ["KAPPA", "RUNS", "PHI", "DELTA"]
    assert [line.split()[:2] for line in moved.lines[1:3]] == [["0.5", "1/1"], ["1", "1/1"]]
    assert "2 of 2 cases that succeeded have no metrics; case 0: " in without.err


async def test_metrics_that_do_not_exist_stop_a_plan_before_it_begins(here: Shell) -> None:
    write(here, metrics="nothing.there:Metrics")

    refused = await here.fullsend("plan", "run", "plan.yaml", "--directory", "p")
    write(here, metrics="rings")
    mistake = await here.fullsend("plan", "run", "plan.yaml")
    write(here)
    await here.fullsend("plan", "run", "plan.yaml", "--directory", "q")
    none = await here.fullsend("plan", "metrics", "q")

    assert refused.error.startswith("error: the metrics 'nothing.there:Metrics' can't be imported: ")
    assert mistake.error == (
        "error: plan.yaml member 'metrics': 'rings' are no metrics; known are ring, or give module:Class"
    )
    assert none.error == ("error: q has no metrics; say which by `--metrics`: ring, or module:Class")
